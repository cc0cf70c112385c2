"""The proof that a resumed run goes on with the examples that it began with.

Its plan counts steps in an order of examples. With other examples, or another part of them with
loss, that order would mean something else, and the result would be that of no run.
"""

from typing import Any

from backend.engine.data.token_arrays import Documents
from backend.engine.runs.run_log import RunLog
from backend.engine.templates.answers import Remark
from backend.engine.templates.rendering import ChatTemplate
from backend.errors import DataError
from backend.runs.run_records import RunStatus

AGAIN = "Start a new run; with Start from it continues the training of this run's adapter."


def checked(before: RunStatus, examples: Documents) -> str:
    """Return the digest of the examples; raises DataError where the run began with others.

    Runs of version 0.1.0 have no digest. They go on where the rule by which an example is read has
    stayed the same for all of their examples.
    """
    digest = examples.digest()
    if before.examples and before.examples != digest:
        raise DataError(
            "The examples are not those that this run began with: the data, or the chat template, "
            "has changed.",
            cure=f"Bring back the data as it was. Or: {AGAIN[0].lower()}{AGAIN[1:]}",
        )
    if before.step and not before.examples and examples.has_remark(Remark.NEW_RULE):
        raise DataError(
            "This run was begun by an earlier version, which trained on another part of these "
            "examples.",
            cure=AGAIN,
        )
    return digest


def note_date(log: RunLog, tokenizer: Any) -> None:
    """Record the day that the chat template shows, if it shows one; the run keeps it."""
    if tokenizer.chat_template and ChatTemplate(tokenizer).shows_date:
        log.noted(f"The chat template shows a date: this run keeps {log.run.request.dated.date}.")
