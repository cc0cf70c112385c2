"""Settings that were changed during a run, stored in its folder so that a resumed run keeps them.

A run's learning rate is a pure function of its step, its first settings, and these changes. A run
that is resumed from before a change applies it again at the same step.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter

from backend.files import damaged_files
from backend.files.atomic_files import write_text

FILE = "adjustments.json"
OTHER_PROMPTS = "The test questions were changed."
Rate = Callable[[int], float]


class Adjustment(BaseModel):
    """A change that applies to the steps after `step`; `total_steps` counts from the start."""

    model_config = ConfigDict(frozen=True)

    step: int
    learning_rate: float | None = None
    total_steps: int | None = None
    watch: list[str] | None = None

    @property
    def changes_rate(self) -> bool:
        """Whether it changes the learning rate of later steps."""
        return self.learning_rate is not None or self.total_steps is not None


_LIST = TypeAdapter(list[Adjustment])


def read(folder: Path) -> list[Adjustment]:
    """Return the changes of the run in this folder, in order; raises Damaged."""
    return damaged_files.read_if_there(folder / FILE, _LIST.validate_json, missing=[])


def add(folder: Path, change: Adjustment) -> list[Adjustment]:
    """Store another change; of several after the same step, the last one applies."""
    changes = [*(each for each in read(folder) if each.step <= change.step), change]
    write_text(folder / FILE, _LIST.dump_json(changes, indent=1).decode())
    return changes


def total_steps(planned: int, changes: list[Adjustment]) -> int:
    """Return the total steps of a run after its changes."""
    wanted = [each for each in changes if each.total_steps is not None]
    return max(wanted[-1].total_steps or 0, wanted[-1].step) if wanted else planned


def watched(prompts: list[str], changes: list[Adjustment]) -> list[str]:
    """Return the test questions of a run after its changes."""
    wanted = [each.watch for each in changes if each.watch is not None]
    return wanted[-1] if wanted else prompts


class Plan(NamedTuple):
    """The first schedule of a run; `rate` gives the learning rate of a step, counted from 0.

    Rates may be in any unit, for example relative to the run's own peak.
    """

    rate: Rate
    scheduler: str
    peak: float
    warmup_steps: int
    total_steps: int


def rates(plan: Plan, changes: list[Adjustment]) -> Rate:
    """Return the learning rate of each step, counted from 0, with the changes applied.

    A new rate restarts the schedule: from that rate to zero at the last step. Another number of
    steps stretches the current schedule, as if it had been planned that way.
    """
    rate, total = plan.rate, plan.total_steps
    start, value = plan.warmup_steps, plan.peak
    for change in (each for each in changes if each.changes_rate):
        total = total_steps(total, [change])
        if change.learning_rate is not None:
            start, value = change.step, change.learning_rate
        rate = _from(change.step, rate, _leg(plan, start=start, value=value, end=total))
    return rate


def relative(changes: list[Adjustment], peak: float) -> list[Adjustment]:
    """Return the changes with learning rates relative to a peak."""
    return [
        each
        if each.learning_rate is None
        else each.model_copy(update={"learning_rate": each.learning_rate / peak})
        for each in changes
    ]


def words(change: Adjustment, scheduler: str, total: int) -> str:
    """Describe a change and how the learning rate continues."""
    if not change.changes_rate:
        return OTHER_PROMPTS
    if change.learning_rate is None:
        return f"The run ends at step {total:,}; the schedule is stretched accordingly."
    return (
        f"Learning rate {change.learning_rate:g} from step {change.step + 1:,}, "
        f"{_GOES_ON[scheduler]} step {total:,}."
    )


def _from(step: int, before: Rate, after: Rate) -> Rate:
    return lambda now: before(now) if now < step else after(now)


def _leg(plan: Plan, *, start: int, value: float, end: int) -> Rate:
    shape, length = _SHAPES[plan.scheduler], max(end - start, 1)

    def rate(now: int) -> float:
        if now < start:  # still in the warm-up
            return plan.rate(now)
        return value * shape(min((now - start) / length, 1.0))

    return rate


_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}
_GOES_ON = {
    "linear": "falling linearly to zero at",
    "cosine": "falling along a cosine to zero at",
    "constant": "constant until",
}
