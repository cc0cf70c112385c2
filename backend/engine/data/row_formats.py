"""Row formats: recognised by the names of the columns, or set by the user's choice of columns.

A format turns one row into the turns of a conversation or into plain text. A row that cannot be
used raises `BadRow` with the wrong value. Knows nothing of files or tokens.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

from backend.engine.data import column_names as names
from backend.engine.data import unfit_rows
from backend.engine.data.row_context import (
    after_system,
    choices_of,
    followed,
    uses_beside,
    with_context,
    with_extra,
)
from backend.engine.data.turns import (
    SHOWN_VALUE,
    BadRow,
    Turns,
    has_speaker,
    holds_turns,
    read_calls,
    read_turns,
    shortened,
    whole,
)
from backend.engine.data_files.file_readers import Broken
from backend.errors import DataError
from backend.files import read_limits
from backend.requests import Columns

Row = dict[str, Any]
Content = Turns | str
Kind = Literal["conversation", "pair", "text"]
SHOWN_COLUMNS = 20
LOOKED_AT = 50
"""So many rows are looked at to recognise a layout."""


class Shape(NamedTuple):
    """How rows are read, and why. Two formats with the same `spec` read every row the same way.

    `columns` says what the columns with the texts are read as. What else a row has is read as well
    (`row_context`), unless the user chose the columns (`is_chosen`).
    """

    name: str
    kind: Kind
    reason: str
    spec: str
    convert: Callable[[Row], Content]
    columns: dict[str, str]
    is_chosen: bool = False
    rated: tuple[str, ...] = ()
    """Columns that rate the answers of rows whose columns the user chose."""

    def uses(self, columns: Iterable[str]) -> dict[str, str]:
        """Say what each column of the table is read as; empty where it is left out."""
        listed = tuple(columns)
        used = uses_beside(listed, self.kind, is_chosen=self.is_chosen) | self.columns
        used |= dict.fromkeys(self.rated, "the rating: answers rated bad have no loss")
        return {column: used.get(column, "") for column in listed}


def first_row(rows: Iterable[Any]) -> Row:
    """Return the first row with named columns; raises DataError where there is none."""
    others: list[Any] = []
    for row in rows:
        if isinstance(row, dict):
            _require_columns(row)
            return row
        others = others or [row]
    what = "The rows are not objects with named columns."
    if others and isinstance(others[0], Broken):
        what = f"No row can be read. The first one: {others[0].what}."
    raise DataError(what, cure='A row looks like {"prompt": "...", "completion": "..."}.')


def first_rows(rows: Iterator[Any]) -> Row | None:
    """Return the first row with columns, filled up with values of the next rows.

    It may lack columns that later ones have. A worse answer is not taken from a later row: there it
    is one bad row, not the layout. None where there are no rows at all.
    """
    try:
        first = next(rows)
    except StopIteration:
        return None
    found = dict(first_row(chain([first], rows)))
    for row in islice(rows, LOOKED_AT):
        if isinstance(row, dict) and len(found) < read_limits.COLUMNS:
            empty = (name for name in row if found.get(name) in names.NOTHING)
            found |= {name: row[name] for name in empty if not names.is_rejected(name)}
    return found


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


def shape_of(first: Row, chosen: Columns) -> Shape:
    """Return the format chosen by the user, else the recognised one, by the first row.

    Raises DataError where no format fits, or `Unfit` where the rows are not for this.
    """
    columns = [str(name) for name in first]
    if chosen.given:
        own = {column for _, column in chosen.named()}
        rated = tuple(each for each in unfit_rows.ratings_of(first) if each not in own)
        made = _chosen_shape(chosen, columns)
        return made._replace(rated=rated, spec=f"{made.spec} {rated}")
    unfit_rows.require_fit(first)
    shape = recognise(first)
    if shape is None:
        raise DataError(
            f"None of the columns ({_listed(columns)}) is recognised as training text.",
            cure="Choose which column is the question and which the answer, or name them messages, "
            "conversations, prompt and completion, instruction (with input) and output, "
            "question and answer, or text.",
        )
    return shape


def recognise(first: Row) -> Shape | None:
    """Return the format that fits the columns; None where no known format does."""
    own = names.spelt(map(str, first))
    for name in names.CONVERSATION:
        if name in own and holds_turns(first.get(own[name])):
            return _conversation(name, own[name])
    pair = next((pair for pair in names.PAIRS if pair[0] in own and pair[1] in own), None)
    if pair is None:
        question = next((name for name in names.QUESTION if name in own), None)
        answer = next((name for name in names.ANSWER if name in own), None)
        pair = (question, answer) if question and answer else None
    if pair is not None:
        return _pair(f"{pair[0]} + {pair[1]}", own[pair[0]], own[pair[1]])
    return _plain(own[names.TEXT]) if names.TEXT in own else None


# -- the shapes ----------------------------------------------------------------------------------


def _conversation(name: str, column: str) -> Shape:
    def convert(row: Row) -> Content:
        return with_context(row, read_turns(row.get(column), column), is_conversation=True)

    reason = f"it has the column {column}"
    return Shape(name, "conversation", reason, name, convert, {column: "the conversation"})


def _pair(name: str, question: str, answer: str) -> Shape:
    def convert(row: Row) -> Content:
        asked = with_extra(row, _said(row, question, "user"), besides=(question, answer))
        return with_context(row, _asked(asked, _answered(row, answer)))

    reason = f"it has the columns {question} and {answer}"
    several = ": the first, where there are several" if _holds_several(answer) else ""
    columns = {question: "the question", answer: f"the answer{several}"}
    return Shape(name, "pair", reason, name, convert, columns)


def _plain(column: str) -> Shape:
    def convert(row: Row) -> Content:
        return _text(row, column)

    reason = f"it has the column {column}"
    return Shape("text", "text", reason, "text", convert, {column: "plain text"})


def _chosen_shape(chosen: Columns, columns: list[str]) -> Shape:
    """Read rows by the columns chosen by the user; numbers there are read as text."""
    for label, column in chosen.named():
        if column not in columns:
            raise DataError(
                f"{label}: there is no column {column!r}.", cure=f"Columns: {_listed(columns)}."
            )
    kind: Kind = "text" if chosen.text else "conversation" if chosen.conversation else "pair"
    convert = {"text": _chosen_text, "conversation": _chosen_turns, "pair": _chosen_pair}[kind]
    said = ", ".join(f"{column} as {label.lower()}" for label, column in chosen.named())
    spec = f"chosen {json.dumps(chosen.model_dump(exclude_none=True), sort_keys=True)}"
    uses = {column: f"the {label.lower()}" for label, column in chosen.named()}
    return Shape(
        "chosen columns", kind, f"you chose {said}", spec, convert(chosen), uses, is_chosen=True
    )


def _chosen_text(chosen: Columns) -> Callable[[Row], Content]:
    return lambda row: _cell(row, str(chosen.text))


def _chosen_turns(chosen: Columns) -> Callable[[Row], Content]:
    column = str(chosen.conversation)
    return lambda row: after_system(row, chosen.system, read_turns(row.get(column), column))


def _chosen_pair(chosen: Columns) -> Callable[[Row], Content]:
    prompt, answer = str(chosen.prompt), str(chosen.answer)

    def convert(row: Row) -> Content:
        asked = _said(row, prompt, "user", numbers=True)
        if chosen.context and row.get(chosen.context) not in (None, ""):
            asked = followed(asked, _cell(row, chosen.context))
        turns = _asked(asked, _answered(row, answer))
        return after_system(row, chosen.system, turns)

    return convert


def _asked(asked: Turns, answered: Turns) -> Turns:
    """Join a question and its answer; an answer may repeat the question that it belongs to.

    So does the better answer of a preference pair, as some data sets write it.
    """
    if answered[: len(asked)] == asked and len(answered) > len(asked):
        return answered
    if answered[0]["role"] not in ("assistant", "tool"):
        raise BadRow("its answer begins with a turn of another role", answered[0]["content"])
    return [*asked, *answered]


# -- values --------------------------------------------------------------------------------------


def _answered(row: Row, column: str) -> Turns:
    """Return what the assistant says: a text, a number, turns, the calls of tools, or a choice."""
    value = _unpacked(row.get(column))
    there = names.beside(tuple(row))
    if isinstance(value, int) and not isinstance(value, bool):
        for each in there.extra:
            choices = choices_of(row[each]) if names.normal(each) in names.CHOICES else None
            if choices and 0 <= value < len(choices):
                return [{"role": "assistant", "content": choices[value]}]
    if any(row[tools] for tools in there.tools) and (calls := _calls_in(value)):
        return [{"role": "assistant", "content": "", "tool_calls": read_calls(calls)}]
    return _said(row, column, "assistant", numbers=True)


def _calls_in(value: Any) -> Any:
    """Return the calls of tools that an answer consists of, as xLAM writes them; else None."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    known = (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and {"name", "arguments"} <= each.keys() for each in value)
    )
    return value if known else None


def _said(row: Row, column: str, role: str, *, numbers: bool = False) -> Turns:
    """Return what a column says, as one turn or, where it holds a list of turns, as these."""
    value = _unpacked(row.get(column))
    if isinstance(value, dict) and isinstance(value.get("text"), list):  # SQuAD's answers
        value = value["text"]
    if isinstance(value, dict) and isinstance(value.get("messages"), list):  # OpenAI's input
        value = value["messages"]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = value[0] if len(set(value)) == 1 or (value and _holds_several(column)) else value
        row = {**row, column: value}
    elif isinstance(value, list | dict) and value:
        return read_turns(value if isinstance(value, list) else [value], column)
    text = _cell(row, column) if numbers else _text(row, column)
    return [{"role": role, "content": text}]


def _unpacked(value: Any) -> Any:
    """Read turns, or SQuAD's answers, that a CSV cell can only hold as JSON; else the value."""
    if not isinstance(value, str) or not value.startswith(("[{", '{"text": [')):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if isinstance(found, dict):
        return found if found.keys() == {"text", "answer_start"} else value
    are_turns = all(isinstance(each, dict) and has_speaker(each) for each in found)
    return found if are_turns else value


def _holds_several(column: str) -> bool:
    return names.normal(column) == "answers"


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        what = f"{column} is {'missing' if value is None else f'{shortened(value)}, not text'}"
        raise BadRow(what, value)
    return whole(value, column)


def _cell(row: Row, column: str) -> str:
    """Return a column's text; a number becomes its digits, and a whole one has no decimals."""
    value = row.get(column)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    return _text(row, column)
