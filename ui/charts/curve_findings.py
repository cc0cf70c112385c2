"""The main finding of a loss curve, as one sentence."""

from collections.abc import Sequence
from typing import NamedTuple

from ui.components import units


class Low(NamedTuple):
    """The lowest and the last held-out loss of a run that got worse after the lowest."""

    loss: float
    step: int
    last: float


GOT_WORSE = 1.1
"""If the last held-out loss is this many times the lowest, the run got worse."""


def lowest(steps: Sequence[int], losses: Sequence[float]) -> Low | None:
    """Return the lowest held-out loss; None if the last one is about as low."""
    if not losses:
        return None
    best = min(range(len(losses)), key=losses.__getitem__)
    if losses[-1] <= GOT_WORSE * losses[best]:
        return None
    return Low(losses[best], steps[best], losses[-1])


def finding(
    first: float | None, last: float | None, step: int, running: bool, low: Low | None = None
) -> str:
    """Return the main finding of a loss curve: the title of the chart."""
    if low is not None:
        came = "has risen" if running else "rose"
        if low.step == 0:
            return f"Held-out loss {came} from {units.loss(low.loss)} to {units.loss(low.last)}"
        return (
            f"Held-out loss fell to {units.loss(low.loss)} by step {units.count(low.step)}, then "
            f"{came} to {units.loss(low.last)}"
        )
    if first is None or last is None:
        return "Waiting for the first step" if running else "No steps were recorded"
    steps = units.plural(step, "step")
    if units.loss(first) == units.loss(last):
        return f"Loss is at {units.loss(last)} after {steps}"
    moved = "fell" if last < first else "rose"
    if running:
        moved = "has fallen" if last < first else "has risen"
    return f"Loss {moved} from {units.loss(first)} to {units.loss(last)} in {steps}"
