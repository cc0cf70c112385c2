"""Rows that are not examples to learn from: preference pairs, ratings, pictures and sounds.

Read as if they were, they would teach something else without a word. A person may still choose
the columns; then those are learned, and rows that were rated as bad are not.
"""

from typing import Any

from backend.engine.data import column_names as names
from backend.engine.data.turns import BadRow, role_of
from backend.errors import DataError
from backend.requests import Columns

Row = dict[str, Any]
FILE_PARTS = ({"bytes", "path"}, {"array", "path", "sampling_rate"})
"""The fields of a cell that `datasets` writes for a picture or a sound."""


class Unfit(DataError):
    """Rows that are not for this, and the columns that can be learned now, if there are any."""

    def __init__(self, what: str, cure: str, instead: Columns | None = None) -> None:
        super().__init__(what, cure=cure)
        self.instead = instead

    def to_dict(self) -> dict[str, str]:
        """Return it as what it is to other processes."""
        return {**super().to_dict(), "kind": "DataError"}


def require_fit(first: Row) -> None:
    """Raise Unfit where the first row of a table shows that its rows are not for this."""
    there = names.beside(tuple(first))
    if worse := [name for name in there.rejected if _is_said(first[name])]:
        raise _preference_pairs(first, there, worse[0])
    if rated := [column for column in there.rated if _is_rating(first, column)]:
        raise _ratings(first, rated[0])
    own = names.spelt(first)
    if names.TEXT in own and role_of(first.get(own.get("role", ""))):
        raise _single_turns(own[names.TEXT], own["role"])


def require_no_media(row: Row) -> None:
    """Raise BadRow where a row has pictures, sounds or films beside its text."""
    for name in names.beside(tuple(row)).media:
        if row[name]:
            raise BadRow(f"it has {name}, and only text is supported", row[name])
    for name, value in row.items():
        if isinstance(value, dict) and any(value.keys() == parts for parts in FILE_PARTS):
            raise BadRow(f"it has a file in {name}, and only text is supported")


def require_no_pair(row: Row) -> None:
    """Raise BadRow where a row is a preference pair among rows that are not."""
    for name in names.beside(tuple(row)).rejected:
        if _is_said(row[name]):
            raise BadRow(f"it is a preference pair, with a worse answer in {name}", row[name])


def is_rated_bad(row: Row) -> bool:
    """Tell whether a row's rating says that its answer is bad."""
    return any(_says_no(row[name]) for name in names.beside(tuple(row)).rated)


def _is_said(value: Any) -> bool:
    return bool(value) and isinstance(value, str | list | dict)


def _says_no(value: Any) -> bool:
    return _plain(value) in ("0", "false")


def _plain(value: Any) -> str:
    """Return a rating as text: 0 and 1 stand for false and true."""
    return str(value).strip().lower() if isinstance(value, bool | int | str) else ""


def _preference_pairs(first: Row, there: names.Beside, worse: str) -> Unfit:
    better = there.chosen[0] if there.chosen else None
    instead = _preferred(first, better) if better else _rated(names.spelt(first))
    what = f"These rows are preference pairs: {better or 'a better answer'} and {worse}."
    cure = "Training on preferences is not supported: here each example has one answer."
    if instead:
        said = ", ".join(f"{label} {column}" for label, column in instead.named())
        cure += f" To train on the better answers alone, choose the columns: {said}."
    return Unfit(what, cure, instead)


def _preferred(first: Row, better: str) -> Columns | None:
    """Return the columns with which the better answers are learned."""
    value = first[better]
    if isinstance(value, list) and len(value) > 1:
        return Columns(conversation=better)
    own = names.spelt(first)
    asked = next((own[n] for n in (*names.QUESTION, *names.CONVERSATION) if n in own), None)
    if asked is not None:
        system = names.beside(tuple(first)).system
        return Columns(prompt=asked, answer=better, system=system[0] if system else None)
    return Columns(text=better) if isinstance(value, str) else None


def _is_rating(first: Row, column: str) -> bool:
    """Tell whether a column rates an answer, or is the class of a text; weights are neither."""
    value, own = first[column], names.spelt(first)
    if _plain(value) in ("true", "false"):
        return True
    if names.TEXT in own:
        return isinstance(value, int | str) and value != ""
    return _plain(value) in ("0", "1") and _rated(own) is not None


def _single_turns(text: str, role: str) -> Unfit:
    return Unfit(
        f"Each row is one turn of a conversation, with its speaker in {role}.",
        "Put the turns of each conversation into one row, as a list in a column called messages. "
        f"To train on the texts alone, choose the columns: Plain text {text}.",
        Columns(text=text),
    )


def _ratings(first: Row, column: str) -> Unfit:
    own = names.spelt(first)
    if names.TEXT in own and not any(name in own for name in names.QUESTION):
        text = own[names.TEXT]
        return Unfit(
            f"These rows are texts with a class in {column}.",
            f"To train on answering with the class, choose the columns: Question {text}, Answer "
            f"{column}. To train on the texts alone, choose: Plain text {text}.",
            Columns(prompt=text, answer=column),
        )
    instead = _rated(own)
    cure = "Training on ratings is not supported: here every answer is learned as a good one."
    if instead:
        said = ", ".join(f"{label} {name}" for label, name in instead.named())
        cure += f" To train on the answers that are rated true alone, choose the columns: {said}."
    return Unfit(f"These rows rate their answers as good or bad, in {column}.", cure, instead)


def _rated(own: dict[str, str]) -> Columns | None:
    conversation = next((own[name] for name in names.CONVERSATION if name in own), None)
    if conversation:
        return Columns(conversation=conversation)
    question = next((own[name] for name in names.QUESTION if name in own), None)
    answer = next((own[name] for name in names.ANSWER if name in own), None)
    return Columns(prompt=question, answer=answer) if question and answer else None
