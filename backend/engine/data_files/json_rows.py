"""The rows of JSON that is not one row in each line; a list is never in memory as a whole.

Lists, objects one after the other, and one object that holds the rows, in a `.json` or `.jsonl`
file. A value that is not valid is a bad row where the next one can be found.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TextIO

from backend.engine.data_files.json_layouts import Layout, by_columns, read_object
from backend.engine.data_files.text_lines import Broken, Numbered, fault, open_data, shown
from backend.errors import DataError
from backend.files import read_limits
from backend.files.unpacking import DataFile

READ_AT_ONCE = SAMPLE = 1 << 20
BETWEEN = re.compile(r"[ \t\r\n\ufeff,]*")
"""Commas too: one that is missing, doubled or behind the last value loses nothing."""
CUT_OFF = 16
"""The decoder may report a missing end up to so many characters before the end of the text."""
KEPT_BEFORE = 64
SHOWN = 200
PART = re.compile(r'"(?:[^"\\\n]|\\.)*"|[\[\]{}]')
"""A text, which ends in its line, or a bracket."""
MOST_WORK = 3_000_000
"""Texts and brackets counted in vain, so that a file of broken values ends in time."""
DEEP_WORK, COPIED = 10_000, 20_000
OPEN = {"}": "{", "]": "["}


class Facts(NamedTuple):
    """How the rows of a file that is not one of lines are stored."""

    notes: tuple[str, ...] = ()
    has_held_out: bool = False


class _Invalid(Exception):
    """A value is not valid JSON: the reason, and the place in the window."""

    def __init__(self, what: str, place: int) -> None:
        super().__init__(what)
        self.what, self.place = what, place
        self.is_deep = what.startswith("maximum recursion")


def read(file: DataFile) -> Iterator[Numbered]:
    """Yield a file's rows: numbered from 1 in a `.json` file, else by the lines they begin in.

    Raises DataError where an error is reached after which no further row can be found.
    """
    with open_data(file) as text:
        if file.suffix == ".json":
            yield from enumerate(read_rows(text, file.name), 1)
        else:
            yield from _Window(text, file.name, counts_lines=True).rows(may_be_a_row=True)


def read_rows(file: TextIO, name: str) -> Iterator[Any]:
    """Yield the rows of an open file without numbers; raises DataError as `read` does."""
    for _, row in _Window(file, name).rows(may_be_a_row=False):
        yield row


def held_out(file: DataFile) -> Iterator[Numbered]:
    """Yield the rows that an object with lists for training and for tests holds out."""
    layout = _only_object(file)
    yield from enumerate(layout.held_out if layout else (), 1)


def facts(file: DataFile) -> Facts:
    """Find out how a file's rows are stored; raises DataError where they cannot be found."""
    return _facts(file, file.stamp)


def is_lines(file: DataFile) -> bool:
    """Tell by its beginning whether a file holds one object in each line."""
    return _is_lines(file, file.stamp)


def is_object(line: str) -> bool:
    """Tell whether a line is a whole JSON object."""
    try:
        return line.lstrip(" \t\ufeff").startswith("{") and isinstance(
            json.loads(line.lstrip("\ufeff")), dict
        )
    except (ValueError, RecursionError):
        return False


def reason(error: Exception) -> str:
    """Return the reason of a JSON error; some of Python's messages end in "at"."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg} column {error.colno}" if error.msg.endswith(" at") else error.msg


@lru_cache(maxsize=64)
def _facts(file: DataFile, stamp: tuple[int, int]) -> Facts:
    is_json = file.suffix == ".json"
    if _is_lines(file, stamp):
        return Facts((f"{file.name} is read as JSONL: one object per line.",) if is_json else ())
    with open_data(file) as text:
        first = _Window(text, file.name).next_value()
    if first == "[":
        return Facts(() if is_json else (f"{file.name} is read as JSON: it holds a list.",))
    if layout := _only_object(file):
        return Facts(layout.notes, bool(layout.held_out))
    several = f"{file.name} is read as JSON: it holds objects one after the other."
    return Facts((several,) if first else ())


def _only_object(file: DataFile) -> Layout | None:
    """Return the layout of a file that is one object; None where it is something else."""
    with open_data(file) as text:
        return _Window(text, file.name).only_object(may_be_a_row=file.suffix != ".json")


@lru_cache(maxsize=64)
def _is_lines(file: DataFile, stamp: tuple[int, int]) -> bool:
    with open_data(file) as text:
        sample = text.read(SAMPLE)
    is_whole, is_json = len(sample) < SAMPLE, file.suffix == ".json"
    lines = [line for line in sample.split("\n") if line.strip(" \t\r\ufeff")]
    if not is_whole and len(lines) > 1:
        lines.pop()
    if not lines:
        return not is_json
    if is_object(lines[0]):
        if len(lines) > 1 or not is_whole:
            return True
        return not is_json and not by_columns(json.loads(lines[0].lstrip("\ufeff")), "")
    return _later_lines_are_objects(lines, sample, is_whole=is_whole, is_json=is_json)


def _later_lines_are_objects(
    lines: list[str], sample: str, *, is_whole: bool, is_json: bool
) -> bool:
    """Decide where the first line is not an object: it may be broken, or begin a longer value."""
    begin = lines[0].lstrip("\ufeff \t")[:1]
    if begin == "[":
        return not is_json and _is_list(lines[0]) and any(map(_is_row, lines[1:]))
    if begin == "{":
        if len(lines) == 1:
            return not is_json
        try:
            json.JSONDecoder().raw_decode(sample.lstrip(" \t\r\n\ufeff"))
            return False
        except (ValueError, RecursionError) as error:
            place = getattr(error, "pos", 0)
            if not is_whole and place >= len(sample.lstrip()) - CUT_OFF:
                return False
        return any(map(_is_row, lines)) or not (is_json or any(map(_is_indented, lines)))
    return any(map(_is_row, lines)) if is_json else True


def _is_row(line: str) -> bool:
    return line.startswith("{") and is_object(line)


def _is_indented(line: str) -> bool:
    return line[0] in " \t"


def _is_list(line: str) -> bool:
    try:
        return isinstance(json.loads(line.lstrip("\ufeff")), list)
    except (ValueError, RecursionError):
        return False


class _Window:
    """The part of a file's text in memory; `at` is the reading position in it."""

    def __init__(self, file: TextIO, name: str, *, counts_lines: bool = False) -> None:
        self._counts_lines, self._has_faults = counts_lines, False
        self._file, self._name = file, name
        self._decoder = json.JSONDecoder()
        self._work = 0
        self._lines, self._counted = 0, 0  # line ends, and up to where in the text
        self.text, self.at = "", 0

    def rows(self, *, may_be_a_row: bool) -> Iterator[tuple[int, Any]]:
        """Yield the rows with the lines they begin in."""
        first = True
        while character := self.next_value():
            line = self._line()
            if character == "[":
                yield from self._elements()
            elif first:
                value = self._value_or_broken(read_limits.JSON_OBJECT_CHARACTERS)
                if isinstance(value, Broken) or self.next_value():
                    yield line, value
                else:
                    layout = self._layout(value, may_be_a_row=may_be_a_row)
                    yield from ((line, row) for row in layout.rows)
            else:
                yield line, self._value_or_broken(read_limits.ROW_CHARACTERS)
            first = False

    def only_object(self, *, may_be_a_row: bool) -> Layout | None:
        """Return the layout of the file's only value, an object; None where there is more."""
        if self.next_value() in ("", "["):
            return None
        value = self._value_or_broken(read_limits.JSON_OBJECT_CHARACTERS)
        if isinstance(value, Broken) or self.next_value():
            return None
        return self._layout(value, may_be_a_row=may_be_a_row)

    def next_value(self) -> str:
        """Go to the next value and return its first character; empty at the file's end."""
        while True:
            self.at = BETWEEN.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read_more():
                return ""

    def _layout(self, value: Any, *, may_be_a_row: bool) -> Layout:
        if may_be_a_row and isinstance(value, dict):
            return by_columns(value, self._name) or Layout([value])
        return read_object(value, self._name)

    def _elements(self) -> Iterator[tuple[int, Any]]:
        """Yield the elements of the list that starts here."""
        self.at += 1
        value = None
        while character := self.next_value():
            if character == "]":
                self.at += 1
                return
            line = self._line() if self._counts_lines else 0
            value = self._value_or_broken(read_limits.ROW_CHARACTERS)
            yield line, value
        if not isinstance(value, Broken):
            what = "the list ends without a bracket: the file may be cut off"
            yield self._line(), Broken(what, "")

    def _value_or_broken(self, longest: int) -> Any:
        """Return the value that starts here, or a broken one; raises DataError without a next."""
        try:
            return self._value(longest)
        except _Invalid as error:
            sentence = self._error(error)
            self._work += max(DEEP_WORK if error.is_deep else 0, (error.place - self.at) // 100)
            self._work += len(self.text) // COPIED
            self._drop()
            start = shown(self.text[self.at : self.at + SHOWN].split("\n")[0])
            if self._work > MOST_WORK or not self._skip(longest):
                raise sentence from None
            return Broken(f"it is not valid JSON ({error.what})", start)

    def _value(self, longest: int) -> Any:
        while True:
            try:
                found, end = self._decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if not self._may_go_on(error) or not self._read_more(longest):
                    raise _Invalid(reason(error), error.pos) from None
                continue
            except (ValueError, RecursionError) as error:
                raise _Invalid(str(error), self.at) from None
            if end >= len(self.text) - CUT_OFF and self._read_more(longest):  # may be incomplete
                continue
            self._require_length(end - self.at, longest)
            start, self.at = self.at, end
            if self._has_faults and (wrong := fault(self.text, start, end)):
                return Broken(wrong, shown(self.text[start:end][:SHOWN]))
            return found

    def _skip(self, longest: int) -> bool:
        """Go behind a value that is not valid; False where its end cannot be found.

        Its brackets show the end, or else the next line that begins like its own.
        """
        if self.text[self.at] not in "{[":
            return self._skip_word()
        end = self._closed(longest)
        if end:
            self.at = end
            return True
        next_row = self._row_pattern()
        if next_row is None:
            return False
        in_first_line = "[" in self._before()
        while not (found := next_row.search(self.text, self.at)):
            if not self._read_more(longest):
                self.at = len(self.text)
                return not in_first_line  # else other rows may be in the same line
        self.at = found.end() - 1
        return True

    def _skip_word(self) -> bool:
        found = re.compile(r"[,\]\n]").search(self.text, self.at)
        if found:
            self.at = max(found.start(), self.at + 1)
        return bool(found)

    def _closed(self, longest: int) -> int:
        """Return where the brackets of the value that starts here close; 0 where they do not."""
        while True:
            end = self._closing(self.at)
            if end >= 0 or not self._read_more(longest):
                break
        rest = BETWEEN.match(self.text, end).end() if end > 0 else 0  # type: ignore[union-attr]
        return end if end > 0 and self.text[rest : rest + 1] in ("", "]", "{", "[") else 0

    def _closing(self, start: int) -> int:
        """Return the end of the value; 0 where brackets do not match, -1 where text is missing."""
        opened: list[str] = []
        count = 0
        for count, found in enumerate(PART.finditer(self.text, start)):
            part = found[0]
            if part in "[{":
                opened.append(part)
            elif part in OPEN:
                if not opened or opened.pop() != OPEN[part]:
                    self._work += count
                    return 0
                if not opened:
                    return found.end()
        self._work += count
        return -1

    def _row_pattern(self) -> re.Pattern[str] | None:
        """Return how a line begins that begins like this one; None in the middle of a line."""
        before = self._before()
        if before.strip(" \t,["):
            return None
        return re.compile(rf"\n[ \t]{{0,{len(before)}}},?[ \t]?{re.escape(self.text[self.at])}")

    def _before(self) -> str:
        """Return what stands in the same line before this place."""
        return self.text[self.text.rfind("\n", 0, self.at) + 1 : self.at]

    def _error(self, error: _Invalid) -> DataError:
        """Return the error with its line in the file."""
        line = self._line() + self.text.count("\n", self.at, error.place)
        if error.is_deep:
            return DataError(f"{self._name} is not valid JSON: {error.what}.")
        return DataError(
            f"{self._name}, line {line} is not valid JSON: {error.what}.",
            cure="A .json file holds one list of objects.",
        )

    def _line(self) -> int:
        self._lines += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._lines + 1

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Tell whether the reason may be that the rest of a value has not been read yet."""
        at_end = error.pos >= len(self.text) - CUT_OFF
        return at_end or error.msg.startswith("Unterminated string")

    def _read_more(self, longest: int = 0) -> bool:
        """Drop the finished text and read on, twice as much each time; False at the file's end."""
        kept = len(self.text) - self.at
        self._require_length(kept // 2, longest or kept)
        piece = self._file.read(max(READ_AT_ONCE, kept))
        if piece:
            self._line()
            start = max(0, self.at - KEPT_BEFORE)
            self.text = self.text[start:] + piece
            self._has_faults = bool(fault(self.text))
            self.at = self._counted = self.at - start
        return bool(piece)

    def _drop(self) -> None:
        """Drop the finished text, in which the decoder would count lines for each error."""
        self._line()
        start = max(0, self.at - KEPT_BEFORE)
        self.text = self.text[start:]
        self.at = self._counted = self.at - start

    def _require_length(self, length: int, longest: int) -> None:
        if length > longest:
            raise DataError(
                f"{self._name}: the value in line {self._line()} is longer than "
                f"{longest:,} characters.",
                cure="Split it into shorter examples, one per line in a .jsonl file.",
            )
