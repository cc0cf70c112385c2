"""Forgetting: how well the base predicts neutral text, without and with a run's adapter.

The text is general English of our own and in no training data. Its perplexity itself says little,
because a base may know other languages better; what counts is how it changes. Knows nothing of the
training data.
"""

import logging
import math
from typing import NamedTuple

import numpy as np

from backend.engine.core.error_translation import translate
from backend.engine.core.job_control import Control
from backend.engine.data.token_arrays import Tokens
from backend.engine.models.loading import Base
from backend.engine.runs.run_log import RunLog
from backend.engine.session import Session
from backend.engine.steps import packing, step_loss
from backend.results import NeutralText
from backend.results.training_layout import TrainingLayout

TOKENS_AT_ONCE = 128
"""Logits take 4 bytes for each token and each entry of the vocabulary, so 80 MB for a large one."""
PARAGRAPHS = (
    "The market opens at seven, when the first vans arrive from the villages. By eight the square "
    "is full of tables with apples, bread, cheese and flowers. Most people know each other, so a "
    "short errand often takes the whole morning. When it rains, the sellers pull a roof of cloth "
    "over their goods and wait until the sky is clear again.",
    "Water changes its form with the temperature. Below zero degrees it is ice, which is lighter "
    "than water and therefore floats on a lake. In the heat of the sun it turns into vapour and "
    "rises into the air, where it cools and forms clouds. Later it falls as rain or snow, and the "
    "rivers carry it back to the sea.",
    "Last autumn we took the slow train along the coast. The journey takes four hours, and for "
    "most of that time the tracks follow the beach. An old man opposite us was reading a newspaper "
    "from the week before. He said that news was like soup: it was better on the second day, when "
    "it was no longer too hot.",
    "To repair a flat tyre, first take the wheel out of the frame and remove the tube. Pump some "
    "air into it and hold it under water: small bubbles show where the hole is. Dry the place, "
    "clean it with sandpaper, and put a thin layer of glue on it. After five minutes, press the "
    "patch on firmly and put everything back together.",
)
log = logging.getLogger(__name__)


class How(NamedTuple):
    """How it is computed: as the run's steps were."""

    precision: str
    layout: TrainingLayout


def measure(session: Session, run_log: RunLog, control: Control, how: How) -> None:
    """Measure the text without and with the run's adapter, and record it with the run.

    Does nothing if the run is being stopped. A failure is noted and never makes the run fail.
    """
    if control.stop_requested:
        return
    try:
        found = _measured(session, run_log.run.request.adapter_id, how)
    except Exception as error:  # a measurement beside the run must not cost its adapter
        log.warning("The neutral text could not be measured.", exc_info=error)
        run_log.notice(f"Perplexity on neutral text was not measured: {translate(error)}")
        return
    if found is not None:
        run_log.on_neutral_text(found)


def _measured(session: Session, adapter_id: str, how: How) -> NeutralText | None:
    """Return the losses; None where the base alone has none that is a finite number."""
    documents = _documents(session.base)
    if not documents:
        return None
    packs = packing.evaluation_packs(documents, TOKENS_AT_ONCE, how.layout)
    losses = []
    for variant in ([], [(adapter_id, 1.0)]):
        with session.using_ids(variant):
            device = session.base.device
            losses.append(step_loss.evaluate(session.model, packs, device, how.precision).loss)
    if not math.isfinite(losses[0]):
        return None
    return NeutralText(before=losses[0], after=losses[1] if math.isfinite(losses[1]) else None)


def _documents(base: Base) -> list[Tokens]:
    """Tokenise the paragraphs without a template, cut to what the base reads at once."""
    longest = min(TOKENS_AT_ONCE, base.facts.context_length or TOKENS_AT_ONCE)
    ids = [base.tokenizer(each).input_ids[:longest] for each in PARAGRAPHS]
    return [
        Tokens(np.array(each, dtype=np.int32), np.ones(len(each), dtype=bool))
        for each in ids
        if len(each) > 1
    ]
