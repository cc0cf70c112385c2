"""A few held-out examples, answered by the base and by the adapter, with the expected answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from backend.engine.core.error_translation import translate
from backend.engine.core.job_control import Control
from backend.engine.data.tokenization import Tokens
from backend.engine.inference import chat
from backend.engine.runs.run_log import RunLog
from backend.engine.session import Session
from backend.errors import WorkbenchError
from backend.results import Sample

MOST = 3
LONGEST_ANSWER = 64


class _Asked(NamedTuple):
    """The prompt of a held-out example, the question in it, and its first answer, as token ids."""

    prompt: list[int]
    question: list[int]
    reference: list[int]


def note(session: Session, run_log: RunLog, documents: Sequence[Tokens], control: Control) -> None:
    """Record greedy answers to the first few held-out examples that have a prompt.

    Does nothing if the run is being stopped, so that it ends soon.
    """
    asked = [found for found in map(_asked, documents) if found is not None][:MOST]
    if not asked or control.stop_requested:
        return
    adapter_id = run_log.run.request.adapter_id
    questions = [
        chat.Question([], variant, seed=0, prompt=each.prompt)
        for variant in ([], [(adapter_id, 1.0)])
        for each in asked
    ]
    settings = chat.Settings(max_new_tokens=LONGEST_ANSWER, temperature=0.0)
    try:
        found, _ = chat.answer(session, questions, settings, control, lambda number, text: None)
    except (WorkbenchError, RuntimeError, MemoryError) as error:
        run_log.notice(f"The held-out examples were not answered: {translate(error)}")
        return  # this does not make a run fail
    if control.stop_requested:
        return
    of_base, of_adapter = found[: len(asked)], found[len(asked) :]
    for each, base, adapter in zip(asked, of_base, of_adapter, strict=True):
        run_log.sampled(
            Sample(
                prompt=_text(session, each.question),
                reference=_text(session, each.reference),
                base=base.text,
                adapter=adapter.text,
            )
        )


def _asked(document: Tokens) -> _Asked | None:
    """Split a document before its first answer; None where it is plain text or was truncated."""
    learned = np.flatnonzero(document.learned)
    if document.cut or not len(learned) or learned[0] < 2:
        return None
    start = int(learned[0])
    rest = np.flatnonzero(~document.learned[start:])
    end = start + int(rest[0]) if len(rest) else len(document)
    prompt = document.ids[:start].tolist()
    first, last = document.asked
    return _Asked(prompt, prompt[first:last] or prompt, document.ids[start:end].tolist())


def _text(session: Session, ids: list[int]) -> str:
    text: str = session.base.tokenizer.decode(torch.tensor(ids), skip_special_tokens=True)
    return text.strip()
