"""Recovery of a run that runs out of memory: saves its last step, explains, suggests settings."""

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
from backend.engine.steps.packing import Packs
from backend.engine.training import memory_estimate
from backend.engine.training.trainer import AdapterTrainer
from backend.errors import OutOfMemory, WorkbenchError
from backend.runs.run_store import Run
from backend.sizes import size_text

ROOM = 0.85  # a retry leaves some of the free memory unused, because the estimate is not exact
NAMES = {
    "activations": "the activations, which each layer keeps for the backward pass",
    "logits": "the logits: one per token with loss and vocabulary entry",
    "adapter": "the adapter itself",
    "gradients": "the adapter's gradients",
    "optimiser": "the optimiser state",
    "overhead": "working memory and libraries (overhead)",
}
logger = logging.getLogger(__name__)


def train_or_rescue(
    trainer: AdapterTrainer, checkpoint: Path | None, log: RunLog, ranks: Ranks
) -> None:
    """Train, from a checkpoint if there is one; save the last step if memory runs out."""
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
    """Save the last whole step of a run that ran out of memory; returns that step, or 0.

    An interrupted step changed no weight, so the state of the step before is whole. `lost` says
    that another process of the run ended; processes only synchronise between optimizer steps.
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
    """Return the error with its largest part named, and the settings that would fit, if any do."""
    found = memory_estimate.estimate(shape, setup)
    name, size = found.largest
    # A retry uses exact allocation, so it has to be smaller than this run with exact allocation.
    exact = memory_estimate.estimate(shape, replace(setup, exact=True)).run
    room = round(ROOM * min(free, exact))
    change = memory_estimate.smallest_change(shape, setup, room, longest=longest)
    what = (
        f"The machine ran out of memory. The largest part is {NAMES[name]}: "
        f"about {size_text(size)} of {size_text(found.run)}."
    )
    cure = (
        f"Retry with {memory_estimate.words(change)}."
        if change
        else "Load a smaller base, or load this one quantised to 4 bits."
    )
    cure = f"{cure} The loaded model is unchanged."
    return OutOfMemory(what, cure=cure, details=error.details), change


def explained(
    error: OutOfMemory, run: Run, packs: Packs, needed: Prediction, free: int
) -> OutOfMemory:
    """Explain what was too large for a run, and write the settings that would fit to its status."""
    longest = max(map(len, packs.documents))
    known, retry = out_of_memory(error, needed.shape, needed.setup, free=free, longest=longest)
    run.update(retry=retry or {})
    return known
