"""What a row holds beside its texts, in any row: system prompt, history, context, tools, ratings.

Says for every column of a table what it is read as, or that it is left out.
"""

from collections.abc import Sequence
from typing import Any

from backend.engine.data import column_names as names
from backend.engine.data.turns import BadRow, Turns, read_history, shortened, system_text, whole

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def with_context(row: Row, turns: Turns, *, is_conversation: bool = False) -> Turns:
    """Put a row's system prompt and earlier turns, if it has them, before its conversation.

    A context beside a conversation is a part of the system prompt. Raises BadRow.
    """
    there = names.beside(tuple(row))
    for column in there.history:
        if row[column]:
            turns = [*read_history(row[column], column), *turns]
    turns = after_system(row, _system_column(row, there), turns)
    contexts = [column for column in there.extra if row[column]] if is_conversation else []
    if not contexts:
        return turns
    said = "\n\n".join(_as_text(row[column], column) for column in contexts)
    if turns[0]["role"] == "system":
        return [*followed(turns[:1], said), *turns[1:]]
    return [{"role": "system", "content": said}, *turns]


def _system_column(row: Row, there: names.Beside) -> str | None:
    """Return the column with the row's system prompt; raises BadRow where two differ."""
    found = [each for each in there.system if row[each]]
    if len(found) > 1 and row[found[0]] != row[found[1]]:
        raise BadRow(f"it has system prompts in {found[0]} and in {found[1]}", row[found[1]])
    return found[0] if found else None


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
    """Add what belongs to a question: an instruction before it, input, context and choices after.

    Raises BadRow where one of them is no text.
    """
    there = names.beside(tuple(row))
    for column in there.extra:
        if column not in besides and row[column]:
            asked = followed(asked, _as_text(row[column], column))
    for column in there.lead:
        if column not in besides and row[column] and asked[-1]["role"] == "user":
            lead = _as_text(row[column], column)
            asked = [
                *asked[:-1],
                *followed([{"role": "user", "content": lead}], asked[-1]["content"]),
            ]
    return asked


def followed(asked: Turns, extra: str) -> Turns:
    """Add a text to the last turn, after a blank line."""
    last = asked[-1]
    return [*asked[:-1], {**last, "content": "\n\n".join(filter(None, (last["content"], extra)))}]


def choices_of(value: Any) -> list[str] | None:
    """Return the choices of a question, each with its letter; None where there are none."""
    labels, texts = None, value
    if isinstance(value, dict):
        labels, texts = value.get("label"), value.get("text")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        return None
    letters = labels if isinstance(labels, list) and len(labels) == len(texts) else LETTERS
    return [f"{letter}. {text}" for letter, text in zip(letters, texts, strict=False)]


def _as_text(value: Any, column: str) -> str:
    """Return a text, several texts, or lettered choices, as one text; raises BadRow."""
    if names.normal(column) in names.CHOICES and (choices := choices_of(value)):
        return whole("\n".join(choices), column)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return whole("\n\n".join(value), column)
    if not isinstance(value, str):
        raise BadRow(f"{column} is {shortened(value)}, not text", value)
    return whole(value, column)


def uses_beside(columns: tuple[str, ...], kind: str, *, is_chosen: bool) -> dict[str, str]:
    """Say what columns beside the texts are read as, in rows of this kind."""
    there = names.beside(columns)
    used = dict.fromkeys(there.weights, "the weight: rows with 0 have no loss")
    if kind != "text":
        used |= dict.fromkeys(there.tools, "the tools")
        used |= dict.fromkeys(there.thoughts, "the thought before the answer")
    if is_chosen or kind == "text":
        return used
    used |= dict.fromkeys(there.system, "the system prompt")
    used |= dict.fromkeys(there.history, "earlier turns")
    if kind == "pair":
        used |= dict.fromkeys(there.lead, "before the question")
    where = "added to the question" if kind == "pair" else "added to the system prompt"
    return used | dict.fromkeys(there.extra, where)
