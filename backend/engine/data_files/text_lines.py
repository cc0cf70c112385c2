"""The lines of a text file, each of limited length, so that a long line cannot fill the memory."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple, TextIO

from backend.engine.data_files.file_type import real_kind
from backend.errors import DataError
from backend.files import read_limits
from backend.files.foreign_files import open_regular

KINDS = "a JSONL, JSON, CSV, TSV, Parquet or text file"
SCANNED = 1 << 20
SHOWN = 100


class TooLong(NamedTuple):
    """Stands for a line that is too long for a row: its beginning, and its length."""

    start: str
    characters: int


def read_lines(path: Path, name: str) -> Iterator[str | TooLong]:
    """Yield the lines with their line ends; raises DataError where the file is not UTF-8 text."""
    with open_text(path, name) as file:
        yield from lines_of(file)


def lines_of(file: TextIO) -> Iterator[str | TooLong]:
    """Yield the lines of an open file with their line ends."""
    while line := file.readline(read_limits.ROW_CHARACTERS):
        if len(line) < read_limits.ROW_CHARACTERS or line.endswith("\n"):
            yield line
        else:
            yield TooLong(line[:SHOWN], len(line) + _skip_line(file))


@contextmanager
def open_text(path: Path, name: str) -> Iterator[TextIO]:
    """Open a text file; bytes that are not UTF-8 raise DataError with their position."""
    kind = real_kind(path)
    if kind:
        cure = "Save it as UTF-8." if "UTF-16" in kind else f"Use {KINDS}."
        raise DataError(f"{name} is {kind}, although its name says otherwise.", cure=cure)
    try:
        with TextIOWrapper(open_regular(path, name, DataError), encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError:
        place = _first_bad_byte(path, name)
        raise DataError(
            f"{name} is not UTF-8 text (byte {place}).", cure="Save it as UTF-8."
        ) from None


def _skip_line(file: TextIO) -> int:
    """Read to the end of a line without keeping it; return the number of characters."""
    skipped = 0
    while piece := file.readline(SCANNED):
        skipped += len(piece)
        if piece.endswith("\n"):
            break
    return skipped


def _first_bad_byte(path: Path, name: str) -> int:
    """Return the position of the first byte that is not UTF-8.

    While streaming, the decoding error only knows the position in its own chunk.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open_regular(path, name, DataError) as file:
        while True:
            piece = file.read(SCANNED)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                return offset - pending + error.start
            if not piece:
                return offset
            offset += len(piece)
