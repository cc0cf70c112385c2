"""The disk that a run needs: its checkpoints, its adapter, and what it writes down on the way."""

import shutil
from pathlib import Path

from backend.engine.training.trainer import KEPT_CHECKPOINTS
from backend.results import Problem
from backend.sizes import size_text

NUMBER_BYTES = 4
"""An adapter's numbers are learned and stored in fp32, whatever the base is stored in."""
OPTIMISER_NUMBERS = 2
"""What Adam remembers of each."""
STEP_BYTES = 300
"""A step in the events, and once more in the state of each checkpoint."""
OVERHEAD_BYTES = 500_000
"""Configurations, model card, random states, log."""


def needed(trainable: int, steps: int) -> int:
    """Return a run's bytes at their peak: a checkpoint is written before an older one goes."""
    checkpoints = KEPT_CHECKPOINTS + 1
    adapter = trainable * NUMBER_BYTES
    states = checkpoints * (adapter * (1 + OPTIMISER_NUMBERS) + STEP_BYTES * steps)
    kept = 2 * adapter  # in the library, and the best state in the run's folder
    return states + kept + STEP_BYTES * steps + OVERHEAD_BYTES


def free(folder: Path) -> int:
    """Return the free bytes where a folder is, or will be."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def problem(bytes_needed: int, bytes_free: int) -> Problem | None:
    """Say that a run does not fit on the disk, if it does not."""
    if bytes_needed <= bytes_free:
        return None
    return Problem(
        what=f"The run needs about {size_text(bytes_needed)} on disk, and "
        f"{size_text(bytes_free)} are free.",
        cure="Free some disk space, or choose another workspace.",
    )
