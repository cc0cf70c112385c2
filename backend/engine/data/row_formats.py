"""Row formats: recognised by the names of the columns, or set by the user's choice of columns.

A format turns one row into the turns of a conversation or into plain text. A row that cannot be
used raises `BadRow` with the wrong value. Knows nothing of files or tokens.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from backend.engine.data.turns import SHOWN_VALUE, BadRow, Turns, read_turns, shortened, whole
from backend.engine.data_files.file_readers import Broken
from backend.errors import DataError
from backend.files import read_limits
from backend.requests import Columns

Row = dict[str, Any]
Content = Turns | str
SYSTEM = "system"
SHOWN_COLUMNS = 20


class Shape(NamedTuple):
    """How rows are read, and why. Two formats with the same `spec` read every row the same way."""

    name: str
    reason: str
    spec: str
    convert: Callable[[Row], Content]


class _Known(NamedTuple):
    columns: tuple[str, ...]
    convert: Callable[[Row], Content]
    takes_system: bool


def first_row(rows: Iterable[Any]) -> Row:
    """Return the first row with named columns; raises DataError where there is none."""
    others: list[Any] = []
    for row in rows:
        if isinstance(row, dict):
            _require_columns(row)
            return row
        others = others or [row]
    said = f"; the first row: {others[0].what}" if others and isinstance(others[0], Broken) else ""
    raise DataError(
        f"The rows are not objects with named columns{said}.",
        cure='A row looks like {"prompt": "...", "completion": "..."}.',
    )


def _require_columns(row: Row) -> None:
    if len(row) > read_limits.COLUMNS:
        raise DataError(
            f"The first row has {len(row):,} columns, "
            f"and at most {read_limits.COLUMNS:,} are read.",
            cure="Leave out the columns that are not needed.",
        )


def _listed(columns: list[str]) -> str:
    """Return the columns' names as text; only the first ones where there are many."""
    shown = ", ".join(column[:SHOWN_VALUE] for column in columns[:SHOWN_COLUMNS])
    more = len(columns) - SHOWN_COLUMNS
    return f"{shown} and {more:,} more" if more > 0 else shown


def recognise(columns: Iterable[str]) -> Shape | None:
    """Return the format that fits the columns; None where no known format does."""
    there = set(columns)
    for name, known in KNOWN.items():
        if there.issuperset(known.columns):
            return _known_shape(name, known, SYSTEM in there and known.takes_system)
    return None


def shape_of(columns: Iterable[str], chosen: Columns) -> Shape:
    """Return the format chosen by the user, else the recognised one; raises DataError."""
    columns = list(map(str, columns))
    if chosen.given:
        return _chosen_shape(chosen, columns)
    shape = recognise(columns)
    if shape is None:
        almost = recognise(column.strip().lower() for column in columns)
        hint = "Write the column names in lower case, without spaces around them. Or: "
        raise DataError(
            f"None of the columns ({_listed(columns)}) is recognised as training text.",
            cure=(hint if almost else "")
            + "Choose which column is the question and which the answer, or name them messages, "
            "conversations, prompt and completion, instruction (with input) and output, "
            "question and answer, or text.",
        )
    return shape


def _known_shape(name: str, known: _Known, with_system: bool) -> Shape:
    words = "the column " if len(known.columns) == 1 else "the columns "
    reason = f"it has {words}{' and '.join(known.columns)}"
    if not with_system:
        return Shape(name, reason, name, known.convert)

    def convert(row: Row) -> Content:
        return _after_system(row, SYSTEM, known.convert(row))

    return Shape(name, f"{reason}, with the system prompt in {SYSTEM}", f"{name}+system", convert)


# -- the shapes ----------------------------------------------------------------------------------


def _messages(row: Row) -> Content:
    return read_turns(row.get("messages"), "messages")


def _conversations(row: Row) -> Content:
    return read_turns(row.get("conversations"), "conversations")


def _alpaca(row: Row) -> Content:
    prompt, answer = _text(row, "instruction"), _text(row, "output")
    extra = _text(row, "input") if row.get("input") else ""
    return _asked(f"{prompt}\n\n{extra}" if extra else prompt, answer)


def _pair(prompt: str, answer: str) -> Callable[[Row], Content]:
    return lambda row: _asked(_text(row, prompt), _text(row, answer))


def _plain(row: Row) -> Content:
    return _text(row, "text")


KNOWN: dict[str, _Known] = {
    "messages": _Known(("messages",), _messages, True),
    "conversations": _Known(("conversations",), _conversations, True),
    "prompt + completion": _Known(("prompt", "completion"), _pair("prompt", "completion"), True),
    "instruction + output": _Known(("instruction", "output"), _alpaca, True),
    "question + answer": _Known(("question", "answer"), _pair("question", "answer"), True),
    "text": _Known(("text",), _plain, False),
}


def _chosen_shape(chosen: Columns, columns: list[str]) -> Shape:
    """Read rows by the columns chosen by the user; numbers there are read as text."""
    for label, column in chosen.named():
        if column not in columns:
            raise DataError(
                f"{label}: there is no column {column!r}.", cure=f"Columns: {_listed(columns)}."
            )

    def convert(row: Row) -> Content:
        if chosen.text:
            return _cell(row, chosen.text)
        if chosen.conversation:
            content: Content = read_turns(row.get(chosen.conversation), chosen.conversation)
        else:
            assert chosen.prompt is not None
            assert chosen.answer is not None
            content = _asked(_cell(row, chosen.prompt), _cell(row, chosen.answer))
        return _after_system(row, chosen.system, content) if chosen.system else content

    said = ", ".join(f"{column} as {label.lower()}" for label, column in chosen.named())
    spec = f"chosen {json.dumps(chosen.model_dump(), sort_keys=True)}"
    return Shape("chosen columns", f"you chose {said}", spec, convert)


def _asked(prompt: str, answer: str) -> Turns:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _after_system(row: Row, column: str, content: Content) -> Content:
    """Put a row's system prompt, if it has one, before its conversation."""
    if not row.get(column) or isinstance(content, str):
        return content
    if content[0]["role"] == "system":
        raise BadRow(f"it has a system prompt in {column} and another in its turns", row[column])
    return [{"role": "system", "content": _text(row, column)}, *content]


# -- values --------------------------------------------------------------------------------------


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        what = f"{column} is {'missing' if value is None else f'{shortened(value)}, not text'}"
        raise BadRow(what, value)
    return whole(value, column)


def _cell(row: Row, column: str) -> str:
    """Return a chosen column's text; a number becomes its digits."""
    value = row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _text(row, column)
