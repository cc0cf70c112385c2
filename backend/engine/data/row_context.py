"""What a row holds beside its texts, in any row: system prompt, history, context, tools, ratings.

Says for every column of a table what it is read as, or that it is left out.
"""

from collections.abc import Sequence
from typing import Any

from backend.engine.data import column_names as names
from backend.engine.data.turns import BadRow, Turns, read_history, shortened, system_text, whole

Row = dict[str, Any]


def with_context(row: Row, turns: Turns) -> Turns:
    """Put a row's system prompt and earlier turns, if it has them, before its conversation."""
    there = names.beside(tuple(row))
    for column in there.history:
        if row[column]:
            turns = [*read_history(row[column], column), *turns]
    system = next((each for each in there.system if row[each]), None)
    return after_system(row, system, turns)


def after_system(row: Row, column: str | None, turns: Turns) -> Turns:
    """Put a column's system prompt, if the row has one there, before its conversation."""
    if column is None or not row.get(column):
        return turns
    text = system_text(row[column], column)
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": text}, *turns]
    if turns[0]["content"].strip() == text.strip():
        return turns
    raise BadRow(f"it has a system prompt in {column} and another in its turns", row[column])


def with_extra(row: Row, asked: Turns, *, besides: Sequence[str]) -> Turns:
    """Add a row's input and context, if it has them, to the question before it."""
    for column in names.beside(tuple(row)).extra:
        if column not in besides and row[column]:
            if not isinstance(row[column], str):
                raise BadRow(f"{column} is {shortened(row[column])}, not text", row[column])
            asked = followed(asked, whole(row[column], column))
    return asked


def followed(asked: Turns, extra: str) -> Turns:
    """Add a text to the last turn, after a blank line."""
    last = asked[-1]
    return [*asked[:-1], {**last, "content": "\n\n".join(filter(None, (last["content"], extra)))}]


def uses_beside(columns: tuple[str, ...], kind: str, *, is_chosen: bool) -> dict[str, str]:
    """Say what columns beside the texts are read as, in rows of this kind."""
    there = names.beside(columns)
    used = dict.fromkeys(there.weights, "the weight: rows with 0 have no loss")
    if kind != "text":
        used |= dict.fromkeys(there.tools, "the tools")
        used |= dict.fromkeys(there.thoughts, "the thought before the answer")
    if is_chosen:
        used |= dict.fromkeys(there.rated, "the rating: rows rated false have no loss")
    elif kind != "text":
        used |= dict.fromkeys(there.system, "the system prompt")
        used |= dict.fromkeys(there.history, "earlier turns")
    if kind == "pair" and not is_chosen:
        used |= dict.fromkeys(there.extra, "added to the question")
    return used
