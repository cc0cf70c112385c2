"""Run folders: the disk is the database of everything that was ever trained.

A run is a folder with `request.json` (what was asked, by which versions), `status.json` (where it
stands, replaced whole), `events.jsonl`, `output.log` and `checkpoints/`. Whoever wants to know
about a run reads its folder; only the process that trains writes `status.json` while it lives.
"""

import logging
import os
import re
import shutil
import socket
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict

from backend import adjustments
from backend.errors import DiskFull, InvalidRequest, NotFound
from backend.events import EventReader, EventWriter
from backend.methods import method_of
from backend.requests import LoadModel, Train
from backend.results import Evaluation, RunState, RunSummary
from backend.storage import write_text

VERSIONED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors")
UNDER_WAY = ("running", "queued")
SILENT_S = 600.0  # a run on another machine that has not written for so long is taken for dead
log = logging.getLogger(__name__)
LONGEST_NOTE = 10_000
CHANGED = (
    "its learning rate or its steps were changed on the way, and more epochs would not follow its "
    "plan"
)
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


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


class Run:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.checkpoints = folder / "checkpoints"
        self.log = folder / "output.log"
        self.events_file = folder / "events.jsonl"
        self.note_file = folder / "note.txt"
        self._status_file = folder / "status.json"
        self._request: RunRequest | None = None

    @property
    def request(self) -> RunRequest:
        if self._request is None:
            text = (self.folder / "request.json").read_text(encoding="utf-8")
            self._request = RunRequest.model_validate_json(text)
        return self._request

    def status(self) -> RunStatus:
        """Return where the run stands, as last written."""
        return RunStatus.model_validate_json(self._status_file.read_text(encoding="utf-8"))

    def update(self, **changes: object) -> RunStatus:
        """Replace the status in one step."""
        status = RunStatus.model_validate(
            {**self.status().model_dump(), "heartbeat": time.time(), **changes}
        )
        write_text(self._status_file, status.model_dump_json(indent=1))
        return status

    def note(self) -> str:
        """Return what somebody noted about the run; empty where nobody did."""
        try:
            return self.note_file.read_text(encoding="utf-8")
        except OSError:
            return ""

    def write_note(self, text: str) -> None:
        """Replace the note; raises InvalidRequest where it is too long, DiskFull."""
        if len(text) > LONGEST_NOTE:
            raise InvalidRequest(
                f"A note has at most {LONGEST_NOTE:,} characters, got {len(text):,}.",
                cure="Shorten it.",
            )
        write_text(self.note_file, text.strip())

    def claim(self, *, launched: bool = False) -> None:
        """Note that this process trains the run from now on."""
        process = psutil.Process()
        self.update(
            state="running",
            paused=False,
            launched=launched,
            host=socket.gethostname(),
            pid=process.pid,
            process_started=process.create_time(),
            claimed=time.time(),
            message="",
            cure="",
            error="",
        )

    def latest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint; they appear by renaming, so each one is whole."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if p.is_dir()]
        return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)

    def is_alive(self) -> bool:
        """Tell whether the process that trains this run still exists, or is still to come."""
        status = self.status()
        if status.launched and status.state == "queued":
            return True
        if status.launched and status.host != socket.gethostname():
            return time.time() - status.heartbeat < SILENT_S
        try:
            started = psutil.Process(status.pid).create_time()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return bool(abs(started - status.process_started) < 1.0)

    def tell(self, word: Literal["stop", "abort", "save"]) -> None:
        """Say a word to a run with processes of its own, wherever they are.

        A wish to be saved comes after none to stop, which saves anyway.
        """
        if word != "save" or self.told().partition(" ")[0] in ("", "save"):
            write_text(self.folder / "control", f"{word} {time.time()}")

    def told(self) -> str:
        """Return the last word that was said to this run and when, if any."""
        try:
            return (self.folder / "control").read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def forget_words(self) -> None:
        """Remove what was said to an earlier sitting."""
        (self.folder / "control").unlink(missing_ok=True)

    def interrupt(
        self, message: str, *, state: Literal["interrupted", "stopped"] = "interrupted"
    ) -> None:
        """Record that the run's process is gone, as well as a full disk allows."""
        resumable = self.latest_checkpoint() is not None
        cure = (
            "Resume goes on from the last checkpoint."
            if resumable
            else "There was no checkpoint yet: start it again."
        )
        try:
            self.update(state=state, message=message, cure=cure, **self._newest_step())
            writer = EventWriter(self.events_file)
            writer.write(state, text=message)
            writer.close()
        except (OSError, ValueError, DiskFull) as error:
            log.error("The end of run %s could not be written down: %s", self.id, error)

    def _newest_step(self) -> dict[str, object]:
        """Return where the events end: the status follows them only once a second."""
        steps = (event for event in reversed(EventReader(self.events_file).poll()))
        last = next((event for event in steps if event.type in ("step", "resumed")), None)
        if last is None or last.type == "resumed":
            return {}
        speed = {"tokens_per_second": last.tokens_per_second} if last.tokens_per_second else {}
        return {"step": last.step, "loss": last.loss, **speed}

    def not_extendable(self) -> str:
        """Say why the finished run cannot go on by more epochs; empty where it can."""
        status, processes = self.status(), self.request.train.processes
        if processes > 1:
            return f"it had {processes} processes, and only runs in one process are extended"
        changed = any(each.changes_rate for each in adjustments.read(self.folder))
        if changed or status.step < status.total_steps:
            return CHANGED if changed else "it did not take all the steps that were planned"
        return ""

    def summary(self) -> RunSummary:
        """Describe the run for lists."""
        request, status = self.request, self.status()
        done = status.state in ("stopped", "interrupted", "failed")
        return RunSummary(
            id=self.id,
            name=request.train.name,
            adapter_id=request.adapter_id,
            state=status.state,
            paused=status.paused and status.state == "running",
            colour=request.colour,
            data=request.train.data,
            base_name=request.base_name,
            precision=status.precision,
            quantization=status.quantization,
            method=method_of(request.train.adapter).title,
            rank=request.train.adapter.rank,
            created=request.created,
            begun=max(request.created, status.claimed),
            step=status.step,
            total_steps=status.total_steps,
            loss=status.loss,
            eval_loss=status.eval_loss,
            exact_match=status.exact_match,
            kept_step=status.kept_step,
            tokens_per_second=status.tokens_per_second,
            seconds=status.trained_seconds,
            predicted_seconds=status.predicted_seconds,
            message=status.message,
            cure=status.cure,
            error=status.error,
            peak_memory_bytes=status.peak_memory_bytes,
            predicted_memory_bytes=status.predicted_memory_bytes,
            preparation=status.preparation,
            retry=status.retry,
            launched=status.launched,
            not_extendable=self.not_extendable() if status.state == "finished" else "",
            resumable=done and self.latest_checkpoint() is not None,
            note=self.note(),
        )


class Runs:
    """All runs of a workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._summaries: dict[str, tuple[tuple[int, ...], RunSummary]] = {}
        self._readers: dict[str, EventReader] = {}

    def create(
        self,
        train: Train,
        *,
        base: tuple[str, str, str],
        adapter_id: str,
        colour: str,
        loaded: LoadModel | None = None,
        launched: bool = False,
    ) -> Run:
        """Make the folder of a new run. `base`: source, name and fingerprint of the base."""
        created = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(created))
        slug = re.sub(r"[^a-z0-9]+", "-", train.name.lower()).strip("-") or "run"
        run = Run(self.root / f"{stamp}-{slug}-{uuid.uuid4().hex[:4]}")
        run.checkpoints.mkdir(parents=True)
        request = RunRequest(
            run_id=run.id,
            created=created,
            adapter_id=adapter_id,
            colour=colour,
            base_source=base[0],
            base_name=base[1],
            base_fingerprint=base[2],
            train=train,
            versions=installed_versions(),
            base=loaded,
        )
        status = RunStatus(pid=os.getpid(), launched=launched)
        write_text(run.folder / "status.json", status.model_dump_json())
        write_text(run.folder / "request.json", request.model_dump_json(indent=1))
        return run

    def get(self, run_id: str) -> Run:
        """Return one run; raises NotFound."""
        if not RUN_ID.fullmatch(run_id):
            raise InvalidRequest(f"{run_id!r} is not the id of a run.", cure="Copy it from Runs.")
        folder = self.root / run_id
        if not (folder / "request.json").is_file():
            raise NotFound(f"There is no run {run_id!r}.", cure="Runs lists those there are.")
        return Run(folder)

    def all(self) -> list[Run]:
        """Return all runs, newest first."""
        folders = (path.parent for path in self.root.glob("*/request.json"))
        return [Run(folder) for folder in sorted(folders, key=lambda f: f.name, reverse=True)]

    def summaries(self) -> list[RunSummary]:
        """Describe all runs, newest first; a run that did not change is not read again."""
        return [summary for run in self.all() if (summary := self._summary(run))]

    def reserved_names(self, *, but: str = "") -> set[str]:
        """Return the names of adapters that a run, going on or resumed, may still bring.

        `but` is the id of an adapter whose own run reserves nothing from it.
        """
        mine = [s for s in self.summaries() if s.adapter_id != but]
        return {s.name for s in mine if s.state in UNDER_WAY or s.resumable}

    def events(self, run_id: str) -> EventReader:
        """Return the reader of a run's events, kept so that each poll reads only what is new."""
        if run_id not in self._readers:
            self._readers[run_id] = EventReader(self.get(run_id).events_file)
        return self._readers[run_id]

    def delete(self, run_id: str) -> None:
        """Remove a run's folder."""
        shutil.rmtree(self.get(run_id).folder)
        self._readers.pop(run_id, None)

    def sweep(self, message: str) -> list[Run]:
        """Mark runs whose process is gone as interrupted; returns those."""
        gone = [run for run in self._running() if not run.is_alive()]
        for run in gone:
            run.interrupt(message)
        return gone

    def _running(self) -> list[Run]:
        live = {s.id for s in self.summaries() if s.state in ("running", "queued")}
        return [run for run in self.all() if run.id in live]

    def _summary(self, run: Run) -> RunSummary | None:
        try:
            key = (*_mark(run.folder / "status.json"), *_mark_if_there(run.note_file))
            known = self._summaries.get(run.id)
            if known is None or known[0] != key:
                known = self._summaries[run.id] = (key, run.summary())
        except (OSError, ValueError):
            return None  # deleted under our hands, or written by something else
        return known[1]


def _mark(file: Path) -> tuple[int, ...]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size  # clocks of files are coarse


def _mark_if_there(file: Path) -> tuple[int, ...]:
    return _mark(file) if file.exists() else ()


def installed_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a run's numbers, without importing them."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
