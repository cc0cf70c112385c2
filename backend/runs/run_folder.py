"""One run's folder: the request, the status, and which process trains it.

A run is a folder with `request.json` (the request and library versions), `status.json` (the current
state, replaced as a whole), `events.jsonl`, `output.log`, `checkpoints/` and `lock`. Everything
known of a run is read from its folder. During training only the training process writes
`status.json`.
"""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil

from backend.errors import Busy, Damaged, InvalidRequest, WorkbenchError
from backend.files import damaged_files
from backend.files.atomic_files import write_text
from backend.processes import is_running
from backend.results import RunState
from backend.runs import adjustments
from backend.runs.events import EventReader, EventWriter
from backend.runs.run_lock import RunLock
from backend.runs.run_records import (
    UNDER_WAY,
    End,
    Ended,
    RunRequest,
    RunStatus,
    status_from_events,
)

SILENT_S = 600.0  # a run on another machine without a heartbeat for this long has ended
LOCK_SILENT_S = 60.0
"""The same if its process updates the lock's time, which it does far more often."""
log = logging.getLogger(__name__)
LONGEST_NOTE = 10_000
CHANGED = (
    "its learning rate or steps were changed during the run, so more epochs would not follow its "
    "plan"
)
_PROCESS = {"launched", "host", "locked", "pid", "process_started", "claimed"}
_CLAIMED = {*_PROCESS, "state", "paused", "message", "cure", "error"}


class Run:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.checkpoints = folder / "checkpoints"
        self.log = folder / "output.log"
        self.events_file = folder / "events.jsonl"
        self.note_file = folder / "note.txt"
        self.lock = RunLock(folder)
        self._status_file = folder / "status.json"
        self._request: RunRequest | None = None

    @property
    def described_by(self) -> tuple[Path, ...]:
        """The files that the run's summary is read from."""
        changes = self.folder / adjustments.FILE
        return self._status_file, self.folder / "request.json", self.note_file, changes

    @property
    def request(self) -> RunRequest:
        """The request; raises Damaged if it cannot be read."""
        if self._request is None:
            file = self.folder / "request.json"
            self._request = damaged_files.read(file, RunRequest.model_validate_json)
        return self._request

    def status(self) -> RunStatus:
        """Return the last written status; raises Damaged."""
        return damaged_files.read(self._status_file, RunStatus.model_validate_json)

    def known_status(self) -> RunStatus:
        """Return the status; if it cannot be read, the one that follows from the events."""
        try:
            return self.status()
        except Damaged:
            return status_from_events(self.events_file)

    def update(self, **changes: object) -> RunStatus:
        """Replace the status in one step."""
        status = RunStatus.model_validate(
            {**self.status().model_dump(), "heartbeat": time.time(), **changes}
        )
        write_text(self._status_file, status.model_dump_json(indent=1))
        return status

    def note(self) -> str:
        """Return the user's note about the run; empty if there is none."""
        try:
            return self.note_file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def write_note(self, text: str) -> None:
        """Replace the note; raises InvalidRequest if it is too long, or DiskFull."""
        if len(text) > LONGEST_NOTE:
            raise InvalidRequest(
                f"A note has at most {LONGEST_NOTE:,} characters, got {len(text):,}.",
                cure="Shorten it.",
            )
        try:
            damaged_files.read_if_there(self.note_file, bytes.decode, missing="")
        except Damaged:
            damaged_files.keep_aside(self.note_file)
        write_text(self.note_file, text.strip())

    def claim(self, *, launched: bool = False) -> None:
        """Claim the run for this process until `release`; raises Busy or DiskFull.

        If several processes claim a run at the same moment, only one gets it.
        """
        if self._goes_on_elsewhere() or not self.lock.acquire():
            raise self._taken()
        try:
            self._write_claim(launched=launched)
        except BaseException:
            self.release()
            raise

    @contextmanager
    def claimed(self, *, launched: bool = False) -> Iterator[None]:
        """Train the run in this block. Raises Busy, DiskFull."""
        self.claim(launched=launched)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Let others train or delete the run again."""
        self.lock.release()

    def _write_claim(self, *, launched: bool) -> None:
        process = psutil.Process()
        changes = RunStatus(
            state="running",
            launched=launched,
            host=socket.gethostname(),
            locked=self.lock.is_real,
            pid=process.pid,
            process_started=process.create_time(),
            claimed=time.time(),
        ).model_dump(include=_CLAIMED)
        try:
            before = self.status()
            came_from = before.came_from if before.state in UNDER_WAY else before.state
            self.update(**changes, came_from=came_from)
        except Damaged:  # its checkpoints are complete: continue with the status from the events
            known = status_from_events(self.events_file)
            damaged_files.keep_aside(self._status_file)
            write_text(self._status_file, known.model_dump_json())
            self.update(**changes, came_from=known.state)

    def put_back(self, before: RunStatus, **changes: object) -> None:
        """Leave the run as it was before it was claimed, but for these changes.

        What names the process that claimed it stays, because others wait for that process to end.
        """
        state = before.came_from or "interrupted" if before.state in UNDER_WAY else before.state
        kept = before.model_dump(exclude={*_PROCESS, "heartbeat"})
        self.update(**{**kept, "state": state, "paused": False, "came_from": None, **changes})

    def drop_question(self) -> None:
        """Drop the question about changed data; raises Busy while the run is being trained."""
        self.require_untrained()
        self.update(data_change=None)

    def latest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint. Checkpoints appear by renaming, so each is complete."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if p.is_dir()]
        return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)

    def is_alive(self) -> bool:
        """Return whether a process trains this run, here or elsewhere, or it has yet to start."""
        taken = self.lock.is_taken()
        if taken:
            return True
        try:
            status = self.status()
        except Damaged:
            return False
        if status.state not in UNDER_WAY:
            return False
        if status.launched and status.state == "queued":
            return True
        if not _is_here(status):
            return self._gives_signs(status)
        if status.locked and taken is False and status.state == "running":
            return False
        return is_running(status.pid, status.process_started)

    def _goes_on_elsewhere(self) -> bool:
        """Return whether another machine trains the run; its lock may not be visible here."""
        status = self.known_status()
        going_on = status.state == "running" and not self.lock.held
        return going_on and not _is_here(status) and self._gives_signs(status)

    def _gives_signs(self, status: RunStatus) -> bool:
        patience = SILENT_S if status.launched or not status.locked else LOCK_SILENT_S
        return time.time() - max(status.heartbeat, self.lock.last_sign()) < patience

    @property
    def waits_for_launch(self) -> bool:
        """Whether the run waits to be launched by hand."""
        status = self.status()
        return status.launched and status.state == "queued"

    def is_abandoned(self) -> bool:
        """Return whether the run is unfinished but no process trains it."""
        return not self.is_alive() and self.status().state in UNDER_WAY

    def require_untrained(self) -> None:
        """Raise Busy if a process trains the run, also in another app or on another machine."""
        if self.is_alive():
            raise self._taken()

    def _taken(self) -> Busy:
        try:
            name, status = self.request.train.name, self.status()
        except Damaged:
            return Busy(f"The run {self.id} is being trained.", cure="Wait until it has ended.")
        if self.waits_for_launch:
            return Busy(f"{name} waits to be launched.", cure="Launch it, or discard it first.")
        where = "here" if _is_here(status) else f"on {status.host}"
        return Busy(
            f"{name} is being trained {where} by process {status.pid}.",
            cure="Stop it there first, or wait until it has ended.",
        )

    def tell(self, word: Literal["stop", "abort", "save"]) -> None:
        """Send a command to a run in separate processes, on any machine.

        A save never replaces a pending stop, which saves anyway.
        """
        if word != "save" or self.told().partition(" ")[0] in ("", "save"):
            write_text(self.folder / "control", f"{word} {time.time()}")

    def told(self) -> str:
        """Return the last command that was sent to this run, with its time; empty if none."""
        try:
            file = self.folder / "control"
            return file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def forget_words(self) -> None:
        """Remove a command that was sent to an earlier segment."""
        (self.folder / "control").unlink(missing_ok=True)

    def interrupt(self, message: str, *, state: Ended = "interrupted") -> End | None:
        """Record that the run's process has ended; returns the end if it could not be written."""
        end = End(state=state, message=message, cure=self.cure(), error="")
        return None if self.end(end) else end

    def cure(self) -> str:
        """Return the hint for a run whose process has ended."""
        if self.latest_checkpoint() is not None:
            return "Resume continues from the last checkpoint."
        return "There was no checkpoint yet: start it again."

    def end(self, end: End) -> bool:
        """Record how the run ended if its own process did not; False if that fails.

        A run that is being trained is not changed.
        """
        held = self.lock.held
        try:
            if self._goes_on_elsewhere() or not self.lock.acquire():
                return True
            status = self.status()
            if status.state in UNDER_WAY and status.came_from is not None:
                self._return_to(status.came_from, end)
            elif status.state in UNDER_WAY:
                self.update(**end._asdict(), **self._newest_step())
                writer = EventWriter(self.events_file)
                writer.write(end.state, text=end.message)
                writer.close()
        except (OSError, ValueError, WorkbenchError) as error:
            log.error("The end of run %s could not be recorded: %s", self.id, error)
            return False
        finally:
            if not held:
                self.release()
        return True

    def _return_to(self, state: RunState, end: End) -> None:
        """Record the end of a process that resumed the run and made no step."""
        cure = "" if state == "finished" else end.cure
        said = end._replace(cure=cure)._asdict()
        self.update(**{**said, "state": state, "came_from": None, "paused": False})

    def _newest_step(self) -> dict[str, object]:
        """Return the last step of the events; the status is written only once a second."""
        steps = (event for event in reversed(EventReader(self.events_file).poll()))
        last = next((event for event in steps if event.type in ("step", "resumed")), None)
        if last is None or last.type == "resumed":
            return {}
        speed = {"tokens_per_second": last.tokens_per_second} if last.tokens_per_second else {}
        return {"step": last.step, "loss": last.loss, **speed}

    def not_extendable(self) -> str:
        """Return why the finished run cannot be extended by more epochs; empty if it can."""
        status, processes = self.status(), self.request.train.processes
        if processes > 1:
            return f"it had {processes} processes, and only runs with one process can be extended"
        changed = any(each.changes_rate for each in adjustments.read(self.folder))
        if changed or status.step < status.total_steps:
            return CHANGED if changed else "it did not complete all planned steps"
        return ""


def _is_here(status: RunStatus) -> bool:
    """Return whether the process in a status is on this machine."""
    return status.host in ("", socket.gethostname())
