"""The rows of a `.json` file, one after the other; a list is never in memory as a whole."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from backend.errors import DataError
from backend.files import read_limits

READ_AT_ONCE = 1 << 20
SPACE = re.compile(r"[ \t\r\n]*")
CUT_OFF = 16
"""The decoder may report a missing end up to so many characters before the end of the text."""
TURNS = ("messages", "conversations")
"""Columns whose cells are lists, so that an object with one is a row and not a list of rows."""


def read_rows(file: TextIO, name: str) -> Iterator[Any]:
    """Yield the rows of a list, of an object's only list of objects, or an object as one row.

    Raises DataError when an error is reached, as in a file of lines.
    """
    text = _Window(file, name)
    first = text.next_character()
    if first == "[":
        yield from text.elements()
        text.require_end()
    elif first:
        whole = text.value(read_limits.JSON_OBJECT_CHARACTERS)
        text.require_end()
        yield from _examples(whole, name)


def reason(error: Exception) -> str:
    """Return the reason of a JSON error; some of Python's messages end in "at"."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg} column {error.colno}" if error.msg.endswith(" at") else error.msg


class _Window:
    """The part of a file's text in memory; `at` is the reading position in it."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file, self._name = file, name
        self._decoder = json.JSONDecoder()
        self._lines = 0  # in what was dropped
        self.text, self.at = "", 0

    def next_character(self) -> str:
        """Go to the next character that is not a space and return it; empty at the file's end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read_more():
                return ""

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the list that starts here."""
        self.at += 1
        if self.next_character() == "]":
            self.at += 1
            return
        while True:
            yield self.value(read_limits.ROW_CHARACTERS)
            character = self.next_character()
            if character not in ("]", ","):
                raise self.error(
                    json.JSONDecodeError("Expecting ',' delimiter", self.text, self.at)
                )
            self.at += 1
            if character == "]":
                return
            self.next_character()

    def value(self, longest: int) -> Any:
        """Return the value that starts here, of at most `longest` characters."""
        while True:
            try:
                found, end = self._decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if not self._may_go_on(error) or not self._read_more(longest):
                    raise self.error(error) from None
                continue
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self._name} is not valid JSON: {error}.") from None
            if end >= len(self.text) - CUT_OFF and self._read_more(longest):  # may be incomplete
                continue
            self._require_length(end - self.at, longest)
            self.at = end
            return found

    def require_end(self) -> None:
        """Raise DataError where there is more text."""
        if self.next_character():
            raise self.error(json.JSONDecodeError("Extra data", self.text, self.at))

    def error(self, error: json.JSONDecodeError) -> DataError:
        """Return the error with its line in the file."""
        several = error.msg == "Extra data"
        return DataError(
            f"{self._name}, line {self._lines + error.lineno} is not valid JSON: {reason(error)}.",
            cure="A .json file holds one list of objects."
            + (" One object per line is JSONL: rename the file to .jsonl." if several else ""),
        )

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
            self._lines += self.text.count("\n", 0, self.at)
            self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)

    def _require_length(self, length: int, longest: int) -> None:
        if length > longest:
            line = self._lines + 1 + self.text.count("\n", 0, self.at)
            raise DataError(
                f"{self._name}: the value in line {line} is longer than {longest:,} characters.",
                cure="Split it into shorter examples, one per line in a .jsonl file.",
            )


def _examples(content: Any, name: str) -> list[Any]:
    """Return an object's only list of objects, or the object itself where it is a row."""
    if isinstance(content, dict):
        if any(isinstance(content.get(column), list) for column in TURNS):
            return [content]
        lists = [each for each in content.values() if isinstance(each, list)]
        if len(lists) == 1 and lists[0] and all(isinstance(row, dict) for row in lists[0]):
            return lists[0]
    raise DataError(
        f"{name} is not a list of examples.",
        cure='Write it as [{"prompt": "...", "completion": "..."}, ...].',
    )
