"""What is written down of a run: what was asked, where it stands, and how it ended."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from backend.requests import LoadModel, Train
from backend.results import Evaluation, RunState
from backend.runs.events import EventReader

UNDER_WAY = ("running", "queued")
Ended = Literal["interrupted", "stopped", "failed"]
_PRECISION = re.compile(r"Computing in (\w+):")


class RunRequest(BaseModel):
    """What was asked: enough to do the run again."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    created: float
    adapter_id: str
    colour: str
    base_source: str
    base_name: str
    base_fingerprint: str
    train: Train
    versions: dict[str, str]
    base: LoadModel | None = None
    """How the base was loaded; runs of older versions know its source alone."""


class RunStatus(BaseModel):
    """Where a run stands.

    `pid` and `process_started` name the process that trains it; `claimed` is when it began to.
    `launched` means that it has processes of its own, which may be on other machines and listen to
    its folder; one that is queued waits for somebody to launch it.
    """

    state: RunState = "queued"
    paused: bool = False
    launched: bool = False
    host: str = ""
    locked: bool = False
    """Whether its process holds the lock of the run's folder, which tells more than its number."""
    pid: int = 0
    process_started: float = 0.0
    claimed: float = 0.0
    heartbeat: float = 0.0
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    exact_match: float | None = None
    kept_step: int = 0
    """The step whose state the adapter is, where that is not the last one."""
    early_step: int = 0
    """The step after which the run is to end early, until that is done."""
    tokens_per_second: float | None = None
    trained_seconds: float = 0.0
    predicted_seconds: float | None = None
    extra_epochs: list[float] = []
    peak_memory_bytes: int = 0
    predicted_memory_bytes: int = 0
    precision: str = ""
    preparation: str = ""
    quantization: str = "none"
    stored_precision: str = ""
    retry: dict[str, int | bool] = {}
    evaluation_before: Evaluation | None = None
    message: str = ""
    cure: str = ""
    error: str = ""


class End(NamedTuple):
    """How a run ended: its state, and what to say of it."""

    state: Ended
    message: str
    cure: str
    error: str


def status_from_events(file: Path) -> RunStatus:
    """Return what the events tell of a run whose `status.json` cannot be read."""
    known: dict[str, object] = {"state": "interrupted"}
    for event in EventReader(file).poll():
        told = event.model_dump(exclude_none=True)
        known |= {key: told[key] for key in ("step", "total_steps") if key in told}
        if event.type == "step":
            known |= {key: told[key] for key in ("loss", "tokens_per_second") if key in told}
        elif event.type == "evaluation":
            known |= {"eval_loss": event.loss, "exact_match": event.exact_match}
        elif event.type == "precision" and (found := _PRECISION.match(event.text or "")):
            known["precision"] = found[1]
        elif event.type == "finished":
            known["state"] = "finished"
        elif event.type in ("started", "resumed"):
            known["state"] = "interrupted"
    return RunStatus.model_validate(known)
