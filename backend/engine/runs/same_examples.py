"""Whether a resumed run goes on with the examples that it began with, and what has changed if not.

A plan counts steps in an order of examples. With other examples, or another part of them with loss,
that order would mean something else, and the result would be that of no run. So other data needs a
decision, and the steps that remain are planned anew.
"""

import hashlib
from typing import Any

from backend.engine.data.dataset import Keys
from backend.engine.data.tokenization import Corpus
from backend.engine.runs.run_log import RunLog
from backend.engine.templates.answers import Remark
from backend.engine.templates.rendering import ChatTemplate
from backend.errors import DataChanged
from backend.requests import Train
from backend.results import DataMark
from backend.runs.data_record import what_changed
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


def mark_of(corpus: Corpus) -> DataMark:
    """Describe the data of a run, to be compared later."""
    main, apart = corpus.keys
    held_out_rows = corpus.stats.held_out_rows
    return DataMark(
        rows=corpus.stats.rows - held_out_rows,
        content=_digest(main),
        held_out_rows=held_out_rows,
        held_out_content=_digest(apart),
        examples=corpus.train.digest(),
        held_out_examples=corpus.held_out.digest(),
        shape=corpus.stats.shape,
    )


def change(before: RunStatus, corpus: Corpus, train: Train, mark: DataMark) -> str:
    """Return what has changed since a run began, as a sentence; empty if nothing has.

    Runs of version 0.1.0 have no digest. They go on where the rule by which an example is read has
    stayed the same for all of their examples.
    """
    if not before.examples:
        older = before.step > 0 and corpus.train.has_remark(Remark.NEW_RULE)
        return OLDER if older else ""
    known = before.data.mark if before.data else None
    if before.examples == mark.examples and (known is None or _same_tests(known, mark)):
        return ""
    return UNKNOWN if known is None else what_changed(known, mark, train, since="this run")


def refusal(what: str) -> DataChanged:
    """Return the error for a run that must not go on without a decision."""
    return DataChanged(what, cure=CURE)


def note_date(log: RunLog, tokenizer: Any) -> None:
    """Record the day that the chat template shows, if it shows one; the run keeps it."""
    if tokenizer.chat_template and ChatTemplate(tokenizer).shows_date:
        log.noted(f"The chat template shows a date: this run keeps {log.run.request.dated.date}.")


def _same_tests(then: DataMark, now: DataMark) -> bool:
    return then.held_out_examples == now.held_out_examples


def _digest(keys: Keys) -> str:
    return hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()
