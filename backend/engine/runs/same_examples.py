"""Whether a resumed run goes on with the examples that it began with, and what has changed if not.

A plan counts steps in an order of examples. With other examples, or another part of them with loss,
that order would mean something else, and the result would be that of no run. So other data needs a
decision, and the steps that remain are planned anew.
"""

import hashlib
from pathlib import Path
from typing import Any

from backend.engine.data.dataset import Keys
from backend.engine.data.tokenization import Corpus
from backend.engine.runs.run_log import RunLog
from backend.engine.templates.answers import Remark
from backend.engine.templates.rendering import ChatTemplate
from backend.errors import DataChanged
from backend.permissions import looks_like_path
from backend.requests import Train
from backend.runs.data_record import DataMark
from backend.runs.run_records import RunStatus

CURE = (
    "Bring back the data as it was, or go on with it as it is now (changed_data). The curve then "
    "breaks there, and the run can no longer be repeated from its settings."
)
UNKNOWN = (
    "The examples are not those that this run began with: the data, or the chat template, has "
    "changed."
)
OLDER = "This run was begun by an earlier version, which trained on another part of these examples."
READ_OTHERWISE = (
    "The rows are the same, but they are read in another way than when this run began: the base's "
    "chat template or the app has changed."
)


def mark_of(corpus: Corpus) -> DataMark:
    """Describe the data of a run, to be compared later."""
    main, apart = corpus.keys
    held_out_rows = corpus.stats.held_out_rows
    return DataMark(
        rows=corpus.stats.rows - held_out_rows,
        content=_digest(main),
        held_out_rows=held_out_rows,
        held_out_content=_digest(apart),
        held_out_examples=corpus.held_out.digest(),
    )


def change(before: RunStatus, corpus: Corpus, train: Train, digest: str, mark: DataMark) -> str:
    """Return what has changed since a run began, as a sentence; empty if nothing has.

    Runs of version 0.1.0 have no digest. They go on where the rule by which an example is read has
    stayed the same for all of their examples.
    """
    if not before.examples:
        older = before.step > 0 and corpus.train.has_remark(Remark.NEW_RULE)
        return OLDER if older else ""
    known = before.data.mark if before.data else None
    if before.examples == digest and (known is None or _same_tests(known, mark)):
        return ""
    return UNKNOWN if known is None else what_changed(known, mark, train)


def what_changed(then: DataMark, now: DataMark, train: Train) -> str:
    """Name the data that has changed, with its rows then and now."""
    said = []
    if (then.rows, then.content) != (now.rows, now.content):
        said.append(_changed(_name(train.data), then.rows, now.rows))
    if (then.held_out_rows, then.held_out_content) != (now.held_out_rows, now.held_out_content):
        name = _name(train.held_out) if train.held_out else f"The held-out data of {train.data}"
        said.append(_changed(name, then.held_out_rows, now.held_out_rows))
    return " ".join(said) or READ_OTHERWISE


def refusal(what: str) -> DataChanged:
    """Return the error for a run that must not go on without a decision."""
    return DataChanged(what, cure=CURE)


def note_date(log: RunLog, tokenizer: Any) -> None:
    """Record the day that the chat template shows, if it shows one; the run keeps it."""
    if tokenizer.chat_template and ChatTemplate(tokenizer).shows_date:
        log.noted(f"The chat template shows a date: this run keeps {log.run.request.dated.date}.")


def _same_tests(then: DataMark, now: DataMark) -> bool:
    return then.held_out_examples == now.held_out_examples


def _changed(name: str, then: int, now: int) -> str:
    rows = f"{_rows(then)} then, {now:,} now"
    if then == now:
        rows = f"it still has {_rows(now)}, but not the same ones"
    return f"{name} has changed since this run: {rows}."


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def _name(source: str) -> str:
    return Path(source).name if looks_like_path(source) else source


def _digest(keys: Keys) -> str:
    return hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()
