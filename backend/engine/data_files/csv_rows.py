"""The rows of a CSV or TSV file: names in the first line, one row in each record after it.

A wrong quotation mark may join any number of lines before it is noticed. Then the first of them is
a bad row, and reading goes on with the second. Knows nothing of what rows mean.
"""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

from backend.engine.data_files.text_lines import (
    TOO_LONG,
    Broken,
    Numbered,
    TooLong,
    fault,
    lines_of,
    open_data,
    shown,
)
from backend.errors import DataError
from backend.files import read_limits
from backend.files.encodings import BAD
from backend.files.unpacking import DataFile

BETWEEN = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
USUAL = {".csv": ",", ".tsv": "\t"}
SAMPLE_LINES, SAMPLE_CHARACTERS = 50, 1 << 20
TITLE_WORDS, NAME_WORDS, SHOWN_TITLE = 3, 5, 60
"""So many words has a title at least, and a name below it at most; a row's sentence has more."""
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
"""What Excel writes before the names where the separator is not the usual one of the country."""
NEVER_CLOSED = "its quotation mark is never closed, or closed in a wrong place"


class Form(NamedTuple):
    """How a file separates its columns; `after_blanks` where quotes may follow a blank."""

    delimiter: str
    after_blanks: bool = False
    lines_before: int = 0
    title: str = ""


class _Endless(Exception):
    """A record is longer than a row may be."""


def read_rows(file: DataFile) -> Iterator[Numbered]:
    """Yield the rows with the number of their last line; raises DataError without usable names."""
    csv.field_size_limit(read_limits.ROW_CHARACTERS)
    with open_data(file) as text:
        sample, form = _begin(lines_of(text), USUAL[file.suffix])
        # Lines of the file, not `splitlines`, which also splits at characters that end none in CSV.
        records = _Records(chain(sample, lines_of(text)), form)
        yield from records.rows(_names(records, file.name))


def notes(file: DataFile) -> Iterator[str]:
    """Yield what was found out about the columns, where it is not the usual."""
    usual = USUAL[file.suffix]
    with open_data(file) as text:
        sample, form = _begin(lines_of(text), usual)
        first = next(_Records(iter(sample), form).parsed(), None)
    if form.delimiter != usual:
        between = BETWEEN.get(form.delimiter, repr(form.delimiter))
        yield f"The columns of {file.name} are separated by {between}."
    if form.after_blanks:
        yield (
            f"Blanks before the cells of {file.name} are left out, as quotation marks follow them."
        )
    if form.title:
        yield f"The first line of {file.name} is left out, as a title: {form.title}."
    if _are_sentences(first):
        yield (
            f"The first line of {file.name} looks like a row, and is read as the names of the "
            "columns. If it is one, add a line with names above it."
        )
    unnamed = [at for at, each in enumerate(first or (), 1) if not each.strip()]
    if unnamed:
        yield f"Column {unnamed[0]} of {file.name} has no name in the first line."


def _begin(lines: Iterator[str | TooLong], usual: str) -> tuple[list[str | TooLong], Form]:
    """Return the first lines, and how they separate columns."""
    sample: list[str | TooLong] = []
    characters = 0
    for line in islice(lines, SAMPLE_LINES):
        sample.append(line)
        characters += len(line)
        if isinstance(line, TooLong) or characters > SAMPLE_CHARACTERS:
            break
    texts = [each for each in sample if isinstance(each, str)]
    given = SEPARATOR_LINE.fullmatch(texts[0].rstrip("\n")) if texts else None
    if given:
        return sample, _form(texts[1:], (given[1],), given[1])._replace(lines_before=1)
    return sample, _below_title(texts, usual) or _form(texts, tuple(BETWEEN), usual)


def _below_title(lines: list[str], usual: str) -> Form | None:
    """Return how the lines below a title are read; None where the first line is none.

    A title has several words and no separator; below it are short names, and rows like them.
    """
    title = lines[0].strip() if lines else ""
    if len(title.split()) < TITLE_WORDS or any(each in title for each in BETWEEN):
        return None
    start = next((at for at, line in enumerate(lines) if at and line.strip()), 0)
    below = _form(lines[start:], tuple(BETWEEN), usual)
    rows = _parsed(lines[start:], below)
    if not start or len(rows) < 3 or _regular(rows) < 1:
        return None
    if _are_sentences(rows[0]) or any(len(cell.split()) > TITLE_WORDS for cell in rows[0]):
        return None
    return below._replace(lines_before=start, title=shown(title[:SHOWN_TITLE]))


def _are_sentences(cells: Any) -> bool:
    """Tell whether cells look like those of a row, rather than names: one is a long sentence."""
    if not isinstance(cells, list):
        return False
    ends = (".", "?", "!", "\u3002", "\uff1f", "\uff01")
    return any(len(each.split()) >= NAME_WORDS and each.strip().endswith(ends) for each in cells)


def _form(lines: list[str], delimiters: tuple[str, ...], usual: str) -> Form:
    """Return the separator by which most of the first records have as many columns as the names."""
    best, best_score = Form(usual), (0.0, False, 0)
    for delimiter in delimiters:
        rows = _parsed(lines, Form(delimiter))
        form, share = Form(delimiter), _regular(rows)
        if any(cell.startswith(' "') for row in rows for cell in row):
            spaced = _regular(_parsed(lines, Form(delimiter, after_blanks=True)))
            if spaced >= share:
                form, share = Form(delimiter, after_blanks=True), spaced
        score = (round(share, 1), delimiter == usual, len(rows[0]) if rows else 0)
        if share and score > best_score:
            best, best_score = form, score
    return best


def _parsed(lines: list[str], form: Form) -> list[list[str]]:
    reader = csv.reader(lines, delimiter=form.delimiter, skipinitialspace=form.after_blanks)
    try:
        return [row for row in reader if row]
    except csv.Error:
        return []


def _regular(rows: list[list[str]]) -> float:
    """Return the share of rows with as many columns as the first, which has two at least."""
    if not rows or len(rows[0]) < 2:
        return 0.0
    return sum(len(row) == len(rows[0]) for row in rows) / len(rows)


def _names(records: "_Records", name: str) -> list[str]:
    """Return the names in the first line; raises DataError where they cannot be names."""
    first: Any = next(records.parsed(), [])
    if isinstance(first, Broken):
        raise DataError(
            f"The first line of {name}, which names the columns, cannot be read: {first.what}.",
            cure="Check its quotation marks and its length.",
        )
    if len(first) > read_limits.COLUMNS:
        raise DataError(
            f"{name} has {len(first):,} columns, and at most {read_limits.COLUMNS:,} are read.",
            cure="Leave out the columns that are not needed.",
        )
    names = [each.strip() or f"column {at}" for at, each in enumerate(first, 1)]
    twice = [column for column, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{name} has two columns called {twice[0]!r}.", cure="Give each its own name."
        )
    return names


class _Records:
    """The records of a file, of limited size; one that cannot be right is read again by lines."""

    def __init__(self, lines: Iterator[str | TooLong], form: Form) -> None:
        self._lines = lines
        self._ahead: deque[str | TooLong] = deque()
        self._taken: list[str | TooLong] = []
        self._characters = 0
        self._fault = ""
        self._form = form
        self._wide = 0
        self._doubtful = 0
        self.number = 0
        """The number of the last line that was read."""
        for _ in range(form.lines_before):
            next(self)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self.number += 1
        self._taken.append(line)
        if isinstance(line, TooLong):
            raise _Endless
        if BAD in line or "\0" in line:
            self._fault = self._fault or fault(line)
        if len(self._taken) > 1:
            self._require_bounded(line)
        return line

    def _require_bounded(self, line: str) -> None:
        """Raise _Endless where a record has more lines or characters than a row may have."""
        self._characters += len(line)
        if (
            self._characters > read_limits.ROW_CHARACTERS
            or len(self._taken) > read_limits.CSV_ROW_LINES
        ):
            raise _Endless

    def parsed(self) -> Iterator[Any]:
        """Yield each record as a list of cells, or as a broken row with its first line."""
        reader = self._reader()
        while True:
            self._taken, self._characters, self._fault = [], 0, ""
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, _Endless) as error:
                yield self.go_back(self._reason(error))
                reader = self._reader()
                continue
            if cells:
                yield Broken(self._fault, _start(self._taken[0])) if self._fault else cells

    def rows(self, names: list[str]) -> Iterator[Numbered]:
        """Yield the rows with their line numbers."""
        wide = self._wide = len(names)
        between = BETWEEN.get(self._form.delimiter, repr(self._form.delimiter))
        why = f"text with {between} needs quotes around it"
        more = f"it has more columns than the first line ({why})"
        after_fault = False  # the rest of a row may follow that a wrong quotation mark has split
        for cells in self.parsed():
            if isinstance(cells, Broken):
                after_fault = True
                yield self.number, cells
            elif self.number <= self._doubtful:
                what = "it may be a part of a row above, whose quotation marks are wrong"
                yield self.number, Broken(what, _start(self._taken[0]))
            elif len(cells) == wide:
                after_fault = False
                yield self.number, dict(zip(names, cells, strict=True))
            elif len(self._taken) > 1:
                broken, after_fault = self.go_back(NEVER_CLOSED), True
                yield self.number, broken
            elif len(cells) > wide:
                yield self.number, Broken(more, cells[wide:][:SAMPLE_LINES])
            elif after_fault:
                what = "it has fewer columns than the first line, after a line with a wrong quote"
                yield self.number, Broken(what, _start(self._taken[0]))
            else:
                cells += [None] * (wide - len(cells))
                yield self.number, dict(zip(names, cells, strict=True))

    def go_back(self, what: str) -> Broken:
        """Give up a record's first line, and let the lines after it be read again.

        They are rows where its quotation mark was never closed, and parts of one where a mark
        inside it is wrong. Most of the lines then do not look like rows.
        """
        first, *others = self._taken
        looked_at = others[:SAMPLE_LINES]
        if 2 * sum(map(self._looks_like_row, looked_at)) < len(looked_at):
            self._doubtful = self.number
        self._ahead.extendleft(reversed(others))
        self.number -= len(others)
        return Broken(what, _start(first))

    def _looks_like_row(self, line: str | TooLong) -> bool:
        if isinstance(line, TooLong):
            return False
        form = self._form
        alone = csv.reader(
            [line], strict=True, delimiter=form.delimiter, skipinitialspace=form.after_blanks
        )
        try:
            cells = next(alone, [])
        except csv.Error as error:
            return "unexpected end" in str(error)  # the first line of a row of several
        stray = any('"' in cell for cell in cells) and '""' not in line
        return len(cells) in (0, self._wide) and not stray

    def _reader(self) -> Any:
        form = self._form
        return csv.reader(
            self, strict=True, delimiter=form.delimiter, skipinitialspace=form.after_blanks
        )

    def _reason(self, error: Exception) -> str:
        if len(self._taken) > 1 or "unexpected end" in str(error):
            return NEVER_CLOSED
        kind = "TSV" if self._form.delimiter == "\t" else "CSV"
        return TOO_LONG if isinstance(error, _Endless) else f"it is not valid {kind} ({error})"


def _start(line: str | TooLong) -> str:
    return line.start if isinstance(line, TooLong) else shown(line.rstrip("\n")[:1000])
