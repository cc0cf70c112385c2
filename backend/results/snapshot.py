"""The state of the session and of everything around it, in one consistent piece."""

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
    """The model job that is running now."""

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
    """A run was asked to pause, and finishes its step first."""
    answering: str = ""
    """The title of what uses the model while the run is paused; empty where it is free."""
    half_trained: AdapterInfo | None = None
    """The adapter of a paused run as it is now; it can be asked under its name."""


class Notice(Result):
    """Something the person should know although they did not ask: shown until the next one."""

    kind: Literal["info", "good", "bad"]
    text: str
    time: float


class Snapshot(Result):
    """Everything a screen needs, in one consistent piece. Equal versions are equal snapshots."""

    version: int
    phase: Phase
    base: ModelFacts | None
    active: list[tuple[str, float]]
    adapters: list[AdapterInfo]
    runs: list[RunSummary]
    job: JobInfo | None
    notice: Notice | None
    status: tuple[AdapterStatus, ...] = ()
    """The adapters on the model, as the model itself tells."""
    irregular: str = ""
    """What is not as it should be on the model; empty where all is well."""
    deleted: tuple[AdapterInfo, ...] = ()
    """Adapters that can still be restored."""
    damaged: tuple[DamagedAdapter, ...] = ()
    """Adapters whose side-car cannot be read."""
    side_jobs: tuple[JobInfo, ...] = ()
    """Work beside the session that is worth showing, such as a merge."""
    queue: tuple[QueuedRun, ...] = ()
    """Trainings that wait their turn, in their order."""
    slot: SlotStatus | None = None
    """The hot-swap slot, while one is prepared."""
    memory_bytes: int
    memory_total_bytes: int
