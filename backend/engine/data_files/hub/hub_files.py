"""Checks of data files before `datasets` reads them: too large ones are refused.

`datasets` 5.2.0 reads a line, a list or a row of any length into memory.
"""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from backend.engine.data_files import json_rows, parquet_rows
from backend.engine.data_files.file_type import real_kind
from backend.engine.data_files.text_lines import TooLong, lines_of, open_text
from backend.errors import DataError
from backend.files import read_limits
from backend.files.foreign_files import open_regular, require_size

PARQUET, GZIP = "a Parquet file", "a gzip archive"
SHORTER = "Use another data set, or download the file, shorten its rows and enter its path."


def require_bounded(path: Path, name: str) -> None:
    """Raise DataError where reading the file would take more memory than allowed."""
    kind = real_kind(path)
    if kind == PARQUET:
        return parquet_rows.require_bounded(path, name)
    with _unpacked(path, name) if kind == GZIP else open_text(path, name) as file:
        if _is_one_value(path, name):
            require_size(path, read_limits.HUB_JSON_BYTES, name, DataError)
            for _ in json_rows.read_rows(file, name):
                pass
        else:
            _require_lines(file, path, name)


@contextmanager
def _unpacked(path: Path, name: str) -> Iterator[TextIO]:
    try:
        with open_regular(path, name, DataError) as packed, gzip.open(packed) as content:
            yield TextIOWrapper(content, encoding="utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{name} cannot be unpacked: {error}.", cure=SHORTER) from None


def _is_one_value(path: Path, name: str) -> bool:
    """Tell whether a `.json` file is a list or one object, not one object per line."""
    if path.suffix.lower() != ".json":
        return False
    with open_text(path, name) as file:
        first = next(lines_of(file), "")
    try:
        return not (isinstance(first, str) and isinstance(json.loads(first), dict))
    except (ValueError, RecursionError):
        return True


def _require_lines(file: TextIO, path: Path, name: str) -> None:
    total, most = (
        0,
        max(read_limits.UNPACKED_FREE_BYTES, read_limits.UNPACKED_RATIO * path.stat().st_size),
    )
    for line in lines_of(file):
        if isinstance(line, TooLong):
            raise DataError(
                f"A line of {name} has {line.characters:,} characters, and at most "
                f"{read_limits.ROW_CHARACTERS:,} are read.",
                cure=SHORTER,
            )
        total += len(line)
        if total > most:
            raise DataError(f"{name} unpacks to more than {most:,} characters.", cure=SHORTER)
