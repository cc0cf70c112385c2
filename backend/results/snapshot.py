"""The state of the session, its library, runs and jobs, as one consistent snapshot."""

from typing import Literal

from backend.results.adapters import AdapterInfo, AdapterStatus, DamagedAdapter
from backend.results.base import ModelFacts, Result
from backend.results.hotswap import SlotStatus
from backend.results.training import QueuedRun, RunSummary

Phase = Literal[
    "empty",
    "loading",
    "ready",
    "training",
    "paused",
    "combining",
    "merging",
    "swapping",
    "chatting",
    "down",
]


class JobInfo(Result):
    """The model job that is running."""

    id: int
    title: str
    operation: str
    run_id: str | None
    text: str
    fraction: float | None
    seconds_left: float | None
    stopping: bool
    paused: bool = False
    pausing: bool = False
    """A pause was requested; the run finishes its step first."""
    answering: str = ""
    """The title of the job that uses the model during a pause; empty if it is free."""
    half_trained: AdapterInfo | None = None
    """The current adapter of a paused run; it can be used under its name."""


class Notice(Result):
    """A message to the user that no request asked for; shown until the next one."""

    kind: Literal["info", "good", "bad"]
    text: str
    time: float


class Snapshot(Result):
    """Everything a screen needs. Snapshots with the same version are equal."""

    version: int
    phase: Phase
    base: ModelFacts | None
    active: list[tuple[str, float]]
    adapters: list[AdapterInfo]
    runs: list[RunSummary]
    job: JobInfo | None
    notice: Notice | None
    status: tuple[AdapterStatus, ...] = ()
    """The adapters in the model, as reported by the model itself."""
    irregular: str = ""
    """A sentence about an inconsistent model state; empty if there is none."""
    deleted: tuple[AdapterInfo, ...] = ()
    """Adapters that can still be restored."""
    damaged: tuple[DamagedAdapter, ...] = ()
    """Adapters whose side-car cannot be read."""
    side_jobs: tuple[JobInfo, ...] = ()
    """Background jobs that are shown, such as a merge."""
    queue: tuple[QueuedRun, ...] = ()
    """Waiting training runs, in order."""
    slot: SlotStatus | None = None
    """The hot-swap slot, if one is prepared."""
    memory_bytes: int
    memory_total_bytes: int
