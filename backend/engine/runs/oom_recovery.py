"""When a run runs out of memory: what can be saved, what was too big, and what would fit."""

import logging
import traceback
from dataclasses import replace
from pathlib import Path

import torch

from backend.engine.core import memory
from backend.engine.core.error_translation import translate
from backend.engine.core.process_group import Ranks
from backend.engine.models.model_size import Shape
from backend.engine.runs.memory_prediction import Prediction
from backend.engine.runs.run_log import RunLog
from backend.engine.training import memory_estimate
from backend.engine.training.packing import Packs
from backend.engine.training.trainer import AdapterTrainer
from backend.errors import OutOfMemory, WorkbenchError
from backend.runs.run_store import Run
from backend.sizes import size_text

ROOM = 0.85  # a retry leaves some of the memory that was free, for the estimate is no promise
NAMES = {
    "activations": "what each layer remembers for learning (activations)",
    "logits": "the scores of all words for each learned token (logits)",
    "adapter": "the adapter itself",
    "gradients": "the adapter's gradients",
    "optimiser": "the optimiser's memory of the adapter",
    "overhead": "working space and libraries (overhead)",
}
logger = logging.getLogger(__name__)


def train_or_rescue(
    trainer: AdapterTrainer, checkpoint: Path | None, log: RunLog, ranks: Ranks
) -> None:
    """Train, from a checkpoint where there is one; a run that breaks off saves its last step."""
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, MemoryError) as error:
        lost = ranks.lost(error)
        if saved := rescue(trainer, error, trainer.device, lost=lost):
            log.saved(saved)
        raise


def rescue(
    trainer: AdapterTrainer, error: BaseException, device: torch.device, *, lost: bool = False
) -> int:
    """Save what a run that ran out of memory had learned; returns the saved step, or 0.

    A step that broke off changed no weight, so the state of the step before is whole. `lost` says
    that another process of the run is gone: processes only meet between corrections.
    """
    if not lost and not isinstance(translate(error), OutOfMemory):
        return 0
    trainer.broke_between_corrections |= lost
    traceback.clear_frames(error.__traceback__)  # they hold the tensors that filled the memory
    trainer.model.zero_grad(set_to_none=True)
    memory.release(device)
    try:
        return trainer.save_last_step()
    except (RuntimeError, MemoryError, OSError, WorkbenchError) as second:
        logger.warning("No last checkpoint: %s", second)
        return 0


def out_of_memory(
    error: OutOfMemory,
    shape: Shape,
    setup: memory_estimate.Setup,
    *,
    free: int,
    longest: int,
) -> tuple[OutOfMemory, dict[str, int | bool] | None]:
    """Return the error with its largest cost named, and the settings that would fit, if any do."""
    found = memory_estimate.estimate(shape, setup)
    name, size = found.largest
    # A retry is planned with exact allocation: measured against that, it is smaller than the run.
    exact = memory_estimate.estimate(shape, replace(setup, exact=True)).run
    room = round(ROOM * min(free, exact))
    change = memory_estimate.smallest_change(shape, setup, room, longest=longest)
    what = (
        f"The machine ran out of memory. The largest cost is {NAMES[name]}, "
        f"about {size_text(size)} of {size_text(found.run)}."
    )
    cure = (
        f"Retry with {memory_estimate.words(change)}."
        if change
        else "Load a smaller base, or this one quantised to 4 bits."
    )
    return OutOfMemory(what, cure=f"{cure} The session is unharmed.", details=error.details), change


def explained(
    error: OutOfMemory, run: Run, packs: Packs, needed: Prediction, free: int
) -> OutOfMemory:
    """Say what was too big for a run, and note in its folder the settings that would fit."""
    longest = max(map(len, packs.documents))
    known, retry = out_of_memory(error, needed.shape, needed.setup, free=free, longest=longest)
    run.update(retry=retry or {})
    return known
