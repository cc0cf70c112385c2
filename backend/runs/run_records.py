"""The records of a run: its request, its status, and how it ended."""

import re
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

from backend.requests import LoadModel, Train
from backend.results import DataChange, Evaluation, NeutralText, RunState
from backend.results.training_layout import TrainingLayout
from backend.runs.data_record import DataRecord
from backend.runs.events import EventReader

UNDER_WAY = ("running", "queued")
Ended = Literal["interrupted", "stopped", "failed"]
_PRECISION = re.compile(r"Computing in (\w+):")


class RunRequest(BaseModel):
    """The request of a run: enough to repeat it."""

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
    """How the base was loaded; runs of older versions have only its source."""

    @model_validator(mode="before")
    @classmethod
    def _as_earlier_versions(cls, data: Any) -> Any:
        """Keep what earlier versions did: they cut long examples and filled no placeholders."""
        train = data.get("train") if isinstance(data, dict) else None
        if isinstance(train, dict) and "long_examples" not in train:
            data = {**data, "train": {"long_examples": "cut", "placeholders": [], **train}}
        return data

    @property
    def dated(self) -> Train:
        """The settings with the day that a chat template shows: chosen, or that of the creation."""
        day = date.fromtimestamp(self.created).isoformat()
        return self.train.model_copy(update={"date": self.train.date or day})


class RunStatus(BaseModel):
    """The status of a run.

    `pid` and `process_started` name the process that trains it; `claimed` is when that started.
    `launched` means that it runs in separate processes, perhaps on other machines, which read
    commands from its folder; if it is also queued, it waits to be launched.
    """

    state: RunState = "queued"
    paused: bool = False
    launched: bool = False
    host: str = ""
    locked: bool = False
    """Whether its process holds the lock of the run's folder, which is safer than its id."""
    pid: int = 0
    process_started: float = 0.0
    claimed: float = 0.0
    came_from: RunState | None = None
    """The state of a run that is being resumed, until it makes a step: it returns to that state."""
    heartbeat: float = 0.0
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    exact_match: float | None = None
    kept_step: int = 0
    """The step that the adapter was saved from, if it is not the last one."""
    early_step: int = 0
    """The step after which the run stops early, until it has stopped."""
    tokens_per_second: float | None = None
    trained_seconds: float = 0.0
    predicted_seconds: float | None = None
    extra_epochs: list[float] = []
    examples: str = ""
    """A digest of the tokenised training examples; empty in runs of 0.1.0."""
    data: DataRecord | None = None
    """The data and the plan of the last segment; None in runs of 0.2 and before."""
    data_change: DataChange | None = None
    """The data had changed when the run was last to be resumed: the question is open."""
    peak_memory_bytes: int = 0
    predicted_memory_bytes: int = 0
    precision: str = ""
    layout: TrainingLayout | None = None
    """How its examples are laid out; None in runs of 0.2 and before, which are packed."""
    layout_note: str = ""
    """A sentence that says so; empty for packed examples."""
    preparation: str = ""
    quantization: str = "none"
    stored_precision: str = ""
    retry: dict[str, int | bool] = {}
    evaluation_before: Evaluation | None = None
    neutral_text: NeutralText | None = None
    """Of the last segment; None if it was not measured."""
    message: str = ""
    cure: str = ""
    error: str = ""

    def extended(self, epochs: float) -> "RunStatus":
        """Return this status with a further extension; unchanged for 0 epochs."""
        extras = [*self.extra_epochs, epochs] if epochs else self.extra_epochs
        return self.model_copy(update={"extra_epochs": extras})


class End(NamedTuple):
    """How a run ended: its state and the texts about it."""

    state: Ended
    message: str
    cure: str
    error: str


def status_from_events(file: Path) -> RunStatus:
    """Return the status that follows from the events if `status.json` cannot be read."""
    known: dict[str, object] = {"state": "interrupted"}
    for event in EventReader(file).poll():
        values = event.model_dump(exclude_none=True)
        known |= {key: values[key] for key in ("step", "total_steps") if key in values}
        if event.type == "step":
            known |= {key: values[key] for key in ("loss", "tokens_per_second") if key in values}
        elif event.type == "evaluation":
            known |= {"eval_loss": event.loss, "exact_match": event.exact_match}
        elif event.type == "precision" and (found := _PRECISION.match(event.text or "")):
            known["precision"] = found[1]
        elif event.type == "finished":
            known["state"] = "finished"
        elif event.type in ("started", "resumed"):
            known |= {"state": "interrupted", **(event.begun.model_dump() if event.begun else {})}
    return RunStatus.model_validate(known)
