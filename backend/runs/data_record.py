"""What a run records of its data: enough to notice other data, to name the change, and to go on.

It is in the run's status, and in its events in case the status is damaged.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Steps = Annotated[int, Field(ge=0, le=10_000_000)]
Epochs = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class DataMark(BaseModel):
    """What the data of a run was; digests are of contents, not of files."""

    model_config = ConfigDict(frozen=True)

    rows: int
    content: str
    held_out_rows: int = 0
    """Rows of separate held-out data, which `rows` does not count."""
    held_out_content: str = ""
    held_out_examples: str = ""
    """Of the tokens that the run is tested on."""


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
    """What the status said of the data when a segment began."""

    model_config = ConfigDict(frozen=True)

    examples: str = ""
    data: DataRecord | None = None
    extra_epochs: list[Epochs] = []
