"""The disk space that a run needs: its checkpoints, its adapter, its events and its log."""

from pathlib import Path

from backend.engine.core import disk
from backend.engine.training.trainer import KEPT_CHECKPOINTS
from backend.results import Problem
from backend.sizes import size_text

NUMBER_BYTES = 4
"""An adapter's parameters are trained and stored in fp32, whatever the base is stored in."""
OPTIMISER_NUMBERS = 2
"""Adam's two moments of each parameter."""
STEP_BYTES = 300
"""The record of a step in the events, and again in the state of each checkpoint."""
OVERHEAD_BYTES = 500_000
"""Configurations, model card, random states, log."""


def needed(trainable: int, steps: int) -> int:
    """Return a run's peak bytes: a checkpoint is written before an older one is deleted."""
    checkpoints = KEPT_CHECKPOINTS + 1
    adapter = trainable * NUMBER_BYTES
    states = checkpoints * (adapter * (1 + OPTIMISER_NUMBERS) + STEP_BYTES * steps)
    kept = 2 * adapter  # in the library, and the best state in the run's folder
    return states + kept + STEP_BYTES * steps + OVERHEAD_BYTES


def free(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    return disk.free([folder])


def problem(bytes_needed: int, bytes_free: int) -> Problem | None:
    """Return the problem where a run does not fit on the disk, else None."""
    if bytes_needed <= bytes_free:
        return None
    return Problem(
        what=f"The run needs about {size_text(bytes_needed)} of disk space, but only "
        f"{size_text(bytes_free)} are free.",
        cure="Free some disk space, or choose another workspace.",
    )
