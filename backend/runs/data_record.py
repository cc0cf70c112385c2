"""What a run records of its data: enough to notice other data, to name the change, and to go on.

It is in the run's status, and in its events in case the status is damaged. A waiting run has a
mark of its data, too.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from backend.permissions import looks_like_path
from backend.requests import Train
from backend.results import DataMark
from backend.results.training_layout import TrainingLayout

Steps = Annotated[int, Field(ge=0, le=10_000_000)]
READ_OTHERWISE = (
    "The rows are the same, but they are read in another way than {then}: the base's chat template "
    "or the app has changed."
)
Epochs = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class Restart(BaseModel):
    """Where a run went on with other data, and what was left to do then."""

    model_config = ConfigDict(frozen=True)

    step: Steps
    epochs: Epochs
    """Epochs over the new data that remain of the segment that `step` is in."""
    limit: Steps | None = None
    """The most steps that the segment may still make."""
    extensions: int = 0
    """How many extensions of the run have begun by then."""
    stretches: tuple[tuple[Steps, Steps], ...] = ()
    """First step and number of steps of each segment so far; the last one is cut at `step`."""
    is_tested_anew: bool = False
    """Whether the held-out examples are others, too."""


class DataRecord(BaseModel):
    """The data of a run, its plan, and the changes of its data so far."""

    model_config = ConfigDict(frozen=True)

    mark: DataMark
    stretches: tuple[tuple[int, int], ...] = ()
    restart: Restart | None = None
    """The last change of the data."""
    changes: tuple[str, ...] = ()
    """A sentence about each change of the data."""


class Begun(BaseModel):
    """What the status said of the data and its layout when a segment began."""

    model_config = ConfigDict(frozen=True)

    examples: str = ""
    data: DataRecord | None = None
    extra_epochs: list[Epochs] = []
    layout: TrainingLayout | None = None


def what_changed(then: DataMark, now: DataMark, train: Train, *, since: str) -> str:
    """Name the data that has changed, with its rows then and now; `since` says when then was."""
    said = []
    if (then.rows, then.content) != (now.rows, now.content):
        said.append(_changed(_name(train.data), then.rows, now.rows, since))
    if (then.held_out_rows, then.held_out_content) != (now.held_out_rows, now.held_out_content):
        name = _name(train.held_out) if train.held_out else f"The held-out data of {train.data}"
        said.append(_changed(name, then.held_out_rows, now.held_out_rows, since))
    if then.shape and now.shape and then.shape != now.shape:
        said.append(f"It is read as {_format(now)} now, and was read as {_format(then)} then.")
    return " ".join(said) or READ_OTHERWISE.format(then=since)


def _changed(name: str, then: int, now: int, since: str) -> str:
    rows = f"{_rows(then)} then, {now:,} now"
    if then == now:
        rows = f"it still has {_rows(now)}, but not the same ones"
    return f"{name} has changed since {since}: {rows}."


def _format(mark: DataMark) -> str:
    return "plain text" if mark.shape == "text" else mark.shape


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def _name(source: str) -> str:
    return Path(source).name if looks_like_path(source) else source
