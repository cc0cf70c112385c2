"""One data file as numbered rows, read when they are needed; a file is never in memory as a whole.

Row numbers count from 1; in files of lines they are line numbers, so an editor finds them. No row
is longer than `read_limits` allow. Knows nothing of what rows mean.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from backend.engine.data_files import json_rows, parquet_rows
from backend.engine.data_files.text_lines import TooLong, open_text, read_lines
from backend.errors import DataError
from backend.files import read_limits

Numbered = tuple[int, Any]
BETWEEN = {",": "commas", "\t": "tabs", ";": "semicolons"}
PARAGRAPHS = (".txt", ".md")
"""Extensions of files whose paragraphs are the examples."""
TOO_LONG = (
    f"it is longer than {read_limits.ROW_CHARACTERS:,} characters: split it into shorter examples"
)


class Broken(NamedTuple):
    """Stands for a row that is invalid in its format; the rows after it can still be read."""

    what: str
    value: Any


def read_rows(path: Path, name: str) -> Iterator[Numbered]:
    """Yield a file's rows with their numbers; raises DataError with the place and the reason."""
    yield from READERS[path.suffix.lower()](path, name)


def count_rows(path: Path, name: str) -> int:
    """Count a file's rows, as fast as its format allows; their content is not checked."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        lines = read_lines(path, name)
        return sum(1 for line in lines if isinstance(line, TooLong) or line.strip())
    if suffix == ".parquet":
        return parquet_rows.count(path, name)
    return sum(1 for _ in read_rows(path, name))


def _read_jsonl(path: Path, name: str) -> Iterator[Numbered]:
    for number, line in enumerate(read_lines(path, name), 1):
        if isinstance(line, TooLong):
            yield number, Broken(TOO_LONG, line.start)
        elif line.strip():
            yield number, _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return Broken(f"it is not valid JSON ({json_rows.reason(error)})", line.rstrip())


def _read_json(path: Path, name: str) -> Iterator[Numbered]:
    with open_text(path, name) as file:
        yield from enumerate(json_rows.read_rows(file, name), 1)


def _read_csv(path: Path, name: str) -> Iterator[Numbered]:
    return _read_separated(path, name, ",", "CSV")


def _read_tsv(path: Path, name: str) -> Iterator[Numbered]:
    return _read_separated(path, name, "\t", "TSV")


def _read_separated(path: Path, name: str, delimiter: str, kind: str) -> Iterator[Numbered]:
    """Read rows with the column names of the first line.

    A wrong quote ends reading: it may have joined any number of lines before it is noticed.
    """
    lines = _Record(read_lines(path, name), name)
    first = next(lines, "")
    delimiter = _delimiter(first, delimiter)
    between = BETWEEN[delimiter]
    more = f"it has more columns than the first line (text with {between} needs quotes around it)"
    csv.field_size_limit(read_limits.ROW_CHARACTERS)
    # Lines of the file, not `splitlines`, which also splits at characters that end no line in CSV.
    reader = csv.DictReader(chain([first], lines), strict=True, delimiter=delimiter)
    try:
        _require_columns(reader.fieldnames or [], name)
        for row in reader:
            lines.characters = 0
            yield reader.line_num, Broken(more, row[None]) if None in row else row
    except csv.Error as error:
        line = reader.reader.line_num  # DictReader's own line_num stays at the last good row
        raise DataError(f"{name}, line {line} is not valid {kind}: {error}.") from None


class _Record:
    """Yields lines and limits the size of one record, which quotes may extend over many lines."""

    def __init__(self, lines: Iterator[str | TooLong], name: str) -> None:
        self._lines, self._name = lines, name
        self._number = 0
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._number += 1
        self.characters += line.characters if isinstance(line, TooLong) else len(line)
        if isinstance(line, TooLong) or self.characters > read_limits.ROW_CHARACTERS:
            raise DataError(
                f"{self._name}: the row that line {self._number} belongs to is longer than "
                f"{read_limits.ROW_CHARACTERS:,} characters.",
                cure="Check for a quotation mark that is never closed, or split it into shorter "
                "rows.",
            )
        return line


def _require_columns(names: Sequence[str], name: str) -> None:
    """Raise DataError where there are too many columns, or two with the same name."""
    if len(names) > read_limits.COLUMNS:
        raise DataError(
            f"{name} has {len(names):,} columns, and at most {read_limits.COLUMNS:,} are read.",
            cure="Leave out the columns that are not needed.",
        )
    twice = [column for column, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{name} has two columns called {twice[0]!r}.", cure="Give each its own name."
        )


def _delimiter(names: str, usual: str) -> str:
    """Return the separator of the names in the first line; Excel often writes semicolons."""
    if usual in names:
        return usual
    return next((other for other in BETWEEN if other in names), usual)


def _read_parquet(path: Path, name: str) -> Iterator[Numbered]:
    for number, row in enumerate(parquet_rows.read(path, name), 1):
        yield number, Broken(TOO_LONG, "") if row is None else row


def _read_paragraphs(path: Path, name: str) -> Iterator[Numbered]:
    """Yield the paragraphs, separated by blank lines, with the number of their first line."""
    kept = _Paragraph()
    for number, line in enumerate(read_lines(path, name), 1):
        if isinstance(line, TooLong) or line.strip():
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
        return self.begun, {"text": "".join(self._lines).rstrip()}


READERS: dict[str, Callable[[Path, str], Iterator[Numbered]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    **dict.fromkeys(PARAGRAPHS, _read_paragraphs),
}
