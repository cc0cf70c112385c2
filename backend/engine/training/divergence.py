"""Losses that are not finite: the error for a run that diverged, or for a damaged base."""

import math
from pathlib import Path

from backend.errors import Diverged, ModelError


def require_finite_test(step: int, loss: float, checkpoints: Path) -> None:
    """Raise where a held-out loss is not finite: ModelError for the base's own, else Diverged."""
    if math.isfinite(loss):
        return
    if step == 0:
        raise damaged(f"The base's loss on the held-out examples is {loss}")
    raise diverged(f"The held-out loss became {loss} at step {step}.", checkpoints)


def require_finite_step(step: int, loss: float, checkpoints: Path) -> None:
    """Raise where a step's training loss is not finite; before step 1 nothing was trained."""
    if math.isfinite(loss):
        return
    if step == 1:
        raise damaged(f"The loss is {loss} before the first optimizer step")
    raise diverged(f"The loss became {loss} in step {step}.", checkpoints)


def diverged(what: str, checkpoints: Path) -> Diverged:
    """Return the error for a run that diverged; mentions the last checkpoint if there is one."""
    kept = any(checkpoints.glob("checkpoint-*"))
    after = " The last checkpoint was saved before that and is good." if kept else ""
    return Diverged(
        what, cure=f"The learning rate is too high for this data: try a quarter of it.{after}"
    )


def damaged(what: str) -> ModelError:
    """Return the error for numbers that were not finite before anything was trained."""
    return ModelError(
        f"{what}: the base computes numbers that are not finite.",
        cure="Its weights may be damaged, or too large for fp16: download the base again, or load "
        "it in bf16 or fp32. Nothing was trained.",
    )
