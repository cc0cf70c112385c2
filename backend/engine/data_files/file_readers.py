"""One data file as numbered rows, read when they are needed; a file is never in memory as a whole.

Row numbers count from 1; in files of lines they are line numbers, so an editor finds them. No row
is longer than `read_limits` allow. Knows nothing of what rows mean.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from backend.engine.data_files import arrow_rows, csv_rows, json_rows, parquet_rows
from backend.engine.data_files.text_lines import (
    TOO_LONG,
    Broken,
    Numbered,
    TooLong,
    fault,
    read_lines,
    shown,
)
from backend.errors import DataError
from backend.files import read_limits
from backend.files.encodings import BAD, encoding_of
from backend.files.unpacking import PACKINGS, DataFile, on_disk

__all__ = ["PARAGRAPHS", "READERS", "Broken", "Numbered", "count_rows", "read_rows"]
PARAGRAPHS = (".txt", ".md")
"""Extensions of files whose paragraphs are the examples."""
LINES = (".jsonl", ".ndjson", ".jsonlines")
BINARY = (".parquet", ".arrow")
TABLES = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
LOOKED_AT = 20


def read_rows(path: Path, name: str) -> Iterator[Numbered]:
    """Yield a file's rows with their numbers; raises DataError with the place and the reason."""
    return rows_of(DataFile(path, name))


def count_rows(path: Path, name: str) -> int:
    """Count a file's rows, as fast as its format allows; their content is not checked."""
    return count(DataFile(path, name))


def rows_of(file: DataFile) -> Iterator[Numbered]:
    """Yield a file's rows with their numbers; raises DataError with the place and the reason."""
    return _reader(file)(file)


def count(file: DataFile) -> int:
    """Count a file's rows, as fast as its format allows; their content is not checked."""
    return sum(counts(file))


def counts(file: DataFile) -> Iterator[int]:
    """Yield numbers that add up to the number of rows, so that counting can be given up."""
    if _is_lines(file):
        for line in read_lines(file):
            if isinstance(line, TooLong) or not line.isspace():
                yield 1
    elif file.suffix == ".parquet":
        with on_disk(file) as path:
            yield parquet_rows.count(path, file.name)
    else:
        for _ in rows_of(file):
            yield 1


def notes(file: DataFile) -> tuple[str, ...]:
    """Return sentences on how a file is read, where that is not plain; raises DataError."""
    found: list[str] = []
    if file.suffix not in BINARY:
        found.append(encoding_of(file).note(file.name))
    if _is_misnamed(file):
        found.append(f"{file.name} is read as JSONL: each of its lines is a JSON object.")
    elif file.suffix in csv_rows.USUAL:
        found += csv_rows.notes(file)
    elif file.suffix in (*LINES, ".json"):
        found += json_rows.facts(file).notes
    return tuple(filter(None, found))


def holds_out(file: DataFile) -> bool:
    """Tell whether a file has lists for training and others that are held out."""
    return file.suffix == ".json" and json_rows.facts(file).has_held_out


def is_plain_text(file: DataFile) -> bool:
    """Tell whether the paragraphs of a file are its rows."""
    return file.suffix in PARAGRAPHS and not _holds_objects(file)


def _reader(file: DataFile) -> Callable[[DataFile], Iterator[Numbered]]:
    if _is_lines(file):
        return _read_jsonl
    return READERS[file.suffix]


def _is_lines(file: DataFile) -> bool:
    """Tell whether each line of a file is a row in JSON, whatever its extension."""
    if file.suffix in (*LINES, ".json"):
        return json_rows.is_lines(file)
    return _is_misnamed(file)


def _is_misnamed(file: DataFile) -> bool:
    """Tell whether a file is JSONL, although its name says that it is a text or a table."""
    return file.suffix in (*PARAGRAPHS, *csv_rows.USUAL) and _holds_objects(file)


def _holds_objects(file: DataFile) -> bool:
    """Tell whether each of the first lines of a text is a JSON object, as in no other text."""
    lines = (line for line in read_lines(file) if isinstance(line, TooLong) or line.strip())
    seen = 0
    for line in islice(lines, LOOKED_AT):
        if isinstance(line, TooLong) or not json_rows.is_object(line):
            return False
        seen += 1
    return seen > 0


def _read_jsonl(file: DataFile) -> Iterator[Numbered]:
    for number, line in enumerate(read_lines(file), 1):
        if isinstance(line, TooLong):
            yield number, Broken(TOO_LONG, line.start)
        elif not line.isspace():
            yield number, _parsed(line)


def _parsed(line: str) -> Any:
    if BAD in line:
        return Broken(fault(line), shown(line.rstrip()))
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        if line.startswith("\ufeff"):  # files were joined, each with its byte-order mark
            return _parsed(line.lstrip("\ufeff"))
        what = fault(line) or f"it is not valid JSON ({json_rows.reason(error)})"
        return Broken(what, line.rstrip())


def _read_parquet(file: DataFile) -> Iterator[Numbered]:
    with on_disk(file) as path:
        for number, row in enumerate(parquet_rows.read(path, file.name), 1):
            yield number, Broken(TOO_LONG, "") if row is None else row


def _read_arrow(file: DataFile) -> Iterator[Numbered]:
    with on_disk(file) as path:
        for number, row in enumerate(arrow_rows.read(path, file.name), 1):
            yield number, Broken(TOO_LONG, "") if row is None else row


def _read_paragraphs(file: DataFile) -> Iterator[Numbered]:
    """Yield the paragraphs, separated by blank lines, with the number of their first line."""
    kept = _Paragraph()
    for number, line in enumerate(read_lines(file), 1):
        if isinstance(line, TooLong) or not line.isspace():
            kept.add(number, line)
        elif kept.begun:
            yield kept.row()
            kept = _Paragraph()
    if kept.begun:
        yield kept.row()


class _Paragraph:
    """The lines of one paragraph; if it is too long, only that fact is kept."""

    def __init__(self) -> None:
        self.begun = 0
        self._lines: list[str] = []
        self._characters = 0

    def add(self, number: int, line: str | TooLong) -> None:
        self.begun = self.begun or number
        self._characters += line.characters if isinstance(line, TooLong) else len(line)
        if self._characters <= read_limits.ROW_CHARACTERS and isinstance(line, str):
            self._lines.append(line)

    def row(self) -> Numbered:
        if self._characters > read_limits.ROW_CHARACTERS:
            return self.begun, Broken(f"{TOO_LONG}, with blank lines between them", "")
        text = "".join(self._lines).rstrip()
        if BAD in text or "\0" in text:
            return self.begun, Broken(fault(text), shown(text[:1000]))
        return self.begun, {"text": text}


READERS: dict[str, Callable[[DataFile], Iterator[Numbered]]] = {
    ".jsonl": json_rows.read,
    ".json": json_rows.read,
    ".csv": csv_rows.read_rows,
    ".tsv": csv_rows.read_rows,
    ".parquet": _read_parquet,
    ".txt": _read_paragraphs,
    ".md": _read_paragraphs,
    ".ndjson": json_rows.read,
    ".jsonlines": json_rows.read,
    ".arrow": _read_arrow,
}


def is_data(name: str) -> bool:
    """Tell by its name alone whether a file is one that is read, compressed or not."""
    return DataFile(Path(name), name).suffix in READERS


def require_data(file: DataFile) -> None:
    """Raise DataError where a file's name says that it is no data file."""
    if file.suffix in READERS:
        return
    if Path(file.name).suffix.lower() in PACKINGS:
        raise DataError(
            f"The name of {file.name} does not say what is inside.",
            cure="Rename it, for example to data.jsonl.gz, or unpack it.",
        )
    if Path(file.name).suffix.lower() in TABLES:
        raise DataError(f"{file.name} is not a data file.", cure="Save the table as CSV.")
    raise DataError(f"{file.name} is not a data file.", cure=f"Use {', '.join(READERS)}.")
