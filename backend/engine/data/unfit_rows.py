"""Rows that are not examples to learn from: preference pairs, ratings, pictures and sounds.

Read as if they were, they would teach something else without a word. A person may still choose
the columns; then those are learned, and rows that were rated as bad are not.
"""

from typing import Any

from backend.engine.data import column_names as names
from backend.engine.data.turns import TRANSCRIPT, BadRow, role_of
from backend.errors import DataError
from backend.requests import Columns

Row = dict[str, Any]
YES = ("1", "true", "good", "positive", "yes", "up", "thumbs_up", "like")
NO = ("0", "-1", "false", "bad", "negative", "no", "down", "thumbs_down", "dislike")
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
    own = names.spelt(first)
    corrected = (own[name] for name in names.CORRECTED if name in own)
    if better := next((each for each in corrected if _is_said(first[each])), None):
        raise _two_answers(first, own, better)
    if names.TEXT in own:
        _require_text_alone(first, own)
    elif rated := ratings_of(first):
        raise _ratings(first, rated[0])


def _require_text_alone(first: Row, own: dict[str, str]) -> None:
    """Raise Unfit where a text is one turn of a conversation, or has an answer or class beside."""
    text = own[names.TEXT]
    if any(name in own and name != names.TEXT for name in names.CONVERSATION) or _has_pair(own):
        return  # the text is beside what is read
    speaker = next((own[name] for name in names.SPEAKER if name in own), None)
    threaded = any(name in own for name in names.IN_A_THREAD)
    if speaker and isinstance(first[speaker], str) and (role_of(first[speaker]) or threaded):
        raise _single_turns(text, speaker)
    labelled = (own[name] for name in (*names.ANSWER, *names.LABELS) if name in own)
    if found := next((each for each in labelled if first[each] not in names.NOTHING), None):
        raise _labelled(first, text, found)


def _has_pair(own: dict[str, str]) -> bool:
    known = any(asked in own and answered in own for asked, answered in names.PAIRS)
    asked, answered = (any(n in own for n in part) for part in (names.QUESTION, names.ANSWER))
    return known or (asked and answered)


def ratings_of(first: Row) -> tuple[str, ...]:
    """Return the columns that rate the answers of the rows as good or bad."""
    own = names.spelt(first)
    if _rated(own) is None:
        return ()
    return tuple(
        column for column in names.beside(tuple(first)).rated if _is_rating(first[column], column)
    )


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


def is_rated_bad(row: Row, column: str) -> bool:
    """Tell whether a row's rating says that its answer is bad."""
    value = _plain(row.get(column))
    if names.normal(column) in names.RATED_BAD:
        return value in YES
    return value in NO


def _is_said(value: Any) -> bool:
    return bool(value) and isinstance(value, str | list | dict)


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
    if isinstance(value, str) and TRANSCRIPT.match(value):
        return Columns(conversation=better)
    if isinstance(value, list) and len(value) > 1:
        return Columns(conversation=better)
    own = names.spelt(first)
    asked = next((own[n] for n in (*names.QUESTION, *names.CONVERSATION) if n in own), None)
    if asked is not None:
        system = names.beside(tuple(first)).system
        return Columns(prompt=asked, answer=better, system=system[0] if system else None)
    return Columns(text=better) if isinstance(value, str) else None


def _is_rating(value: Any, column: str) -> bool:
    return isinstance(value, bool | int | str) and _plain(value) in (*YES, *NO)


def _two_answers(first: Row, own: dict[str, str], better: str) -> Unfit:
    instead = _preferred(first, better)
    said = ", ".join(f"{label} {name}" for label, name in instead.named()) if instead else ""
    return Unfit(
        f"These rows have an answer and a corrected one, in {better}.",
        f"To train on the corrected ones, choose the columns: {said}."
        if said
        else "Choose which column is the question and which the answer.",
        instead,
    )


def _labelled(first: Row, text: str, label: str) -> Unfit:
    """Return the error for texts with a class or an answer, and how to learn that."""
    alone = f"To train on the texts alone, choose: Plain text {text}."
    if isinstance(first[label], list | dict):
        return Unfit(
            f"These rows are texts with {label} beside them.",
            f"Answers with what {label} holds are not supported. {alone}",
            Columns(text=text),
        )
    return Unfit(
        f"These rows are texts with {label} beside them.",
        f"To train on answering a text with it, choose the columns: Question {text}, Answer "
        f"{label}. {alone}",
        Columns(prompt=text, answer=label),
    )


def _single_turns(text: str, role: str) -> Unfit:
    return Unfit(
        f"Each row is one turn of a conversation, with its speaker in {role}.",
        "Put the turns of each conversation into one row, as a list in a column called messages. "
        f"To train on the texts alone, choose the columns: Plain text {text}.",
        Columns(text=text),
    )


def _ratings(first: Row, column: str) -> Unfit:
    instead = _rated(names.spelt(first))
    cure = "Training on ratings is not supported: here every answer is learned as a good one."
    if instead:
        said = ", ".join(f"{label} {name}" for label, name in instead.named())
        cure += f" To train on the answers that are rated good alone, choose the columns: {said}."
    return Unfit(f"These rows rate their answers as good or bad, in {column}.", cure, instead)


def _rated(own: dict[str, str]) -> Columns | None:
    conversation = next((own[name] for name in names.CONVERSATION if name in own), None)
    if conversation:
        return Columns(conversation=conversation)
    question = next((own[name] for name in names.QUESTION if name in own), None)
    answer = next((own[name] for name in names.ANSWER if name in own), None)
    return Columns(prompt=question, answer=answer) if question and answer else None
