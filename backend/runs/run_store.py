"""All runs of a workspace. The folders on disk are the only database.

`run_folder.py` reads one folder. Nothing is hidden: a run with an unreadable file is listed as
damaged, and a run whose process has ended is listed as ended, even if a full disk prevented that
from being recorded.
"""

import logging
import os
import re
import shutil
import socket
import time
import uuid
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from backend.errors import Damaged, DiskFull, InvalidRequest, NotFound, Stopped, WorkbenchError
from backend.files.atomic_files import disk_error, new_folder, remove_folder, write_text
from backend.requests import LoadModel, Train
from backend.results import RunSummary
from backend.runs.events import EventReader
from backend.runs.run_folder import LONGEST_NOTE, Run
from backend.runs.run_records import UNDER_WAY, End, Ended, RunRequest, RunStatus
from backend.runs.run_summary import describe, ended

__all__ = [
    "LONGEST_NOTE",
    "UNDER_WAY",
    "Run",
    "RunRequest",
    "RunStatus",
    "Runs",
    "installed_versions",
]

VERSIONED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors")
PARTS = ("request.json", "status.json", "events.jsonl", "checkpoints")
"""Files and folders by which a run's folder is recognised."""
TRY_AGAIN_S = 5.0
log = logging.getLogger(__name__)
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Runs:
    """All runs of a workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._summaries: dict[str, tuple[tuple[tuple[int, ...], ...], RunSummary]] = {}
        self._unwritten: dict[str, tuple[float, End]] = {}
        """Ends that could not be recorded on a full disk, by run, with the time of its claim."""
        self._tried = 0.0
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
        """Create the folder of a new run. `base`: source, name and fingerprint of the base."""
        created = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(created))
        slug = re.sub(r"[^a-z0-9]+", "-", train.name.lower()).strip("-") or "run"
        run = Run(self.root / f"{stamp}-{slug}-{uuid.uuid4().hex[:4]}")
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
        maker = psutil.Process()
        status = RunStatus(
            launched=launched,
            host=socket.gethostname(),
            pid=maker.pid,
            process_started=maker.create_time(),
            heartbeat=created,
        )
        with new_folder(run.folder) as folder:
            (folder / run.checkpoints.name).mkdir()
            (folder / run.lock.file.name).touch()
            write_text(folder / "status.json", status.model_dump_json())
            write_text(folder / "request.json", request.model_dump_json(indent=1))
        return run

    def get(self, run_id: str) -> Run:
        """Return one run; raises NotFound."""
        if not RUN_ID.fullmatch(run_id):
            raise InvalidRequest(f"{run_id!r} is not the id of a run.", cure="Copy it from Runs.")
        folder = self.root / run_id
        if not _is_run(folder):
            raise NotFound(f"There is no run {run_id!r}.", cure="See the list under Runs.")
        return Run(folder)

    def all(self) -> list[Run]:
        """Return all runs, newest first, including those with damaged files."""
        try:
            found = [each for each in self.root.iterdir() if RUN_ID.fullmatch(each.name)]
        except OSError:
            return []
        folders = sorted(filter(_is_run, found), key=lambda folder: folder.name, reverse=True)
        return [Run(folder) for folder in folders]

    def summaries(self) -> list[RunSummary]:
        """Describe all runs, newest first; unchanged runs are not read again."""
        return [summary for run in self.all() if (summary := self._summary(run))]

    def reserved_names(self, *, but: str = "") -> set[str]:
        """Return the adapter names that unfinished runs may still create.

        `but` is the id of an adapter whose own run is ignored.
        """
        mine = [s for s in self.summaries() if s.adapter_id != but]
        return {s.name for s in mine if s.state in UNDER_WAY or s.resumable}

    def events(self, run_id: str) -> EventReader:
        """Return the reader of a run's events; it is kept, so each poll reads only new events."""
        if run_id not in self._readers:
            self._readers[run_id] = EventReader(self.get(run_id).events_file)
        return self._readers[run_id]

    def delete(self, run_id: str) -> None:
        """Delete a run's folder, in one step for other readers; raises Busy during training."""
        run = self.get(run_id)
        if not _only_waits(run):
            run.require_untrained()
        with suppress(DiskFull):  # an older run has no lock file, and the disk may be full
            if not run.lock.acquire():
                run.require_untrained()
        try:
            remove_folder(run.folder)
        except OSError as error:
            raise disk_error(error, run.folder) from error
        finally:
            run.release()
        self._readers.pop(run_id, None)
        self._unwritten.pop(run_id, None)

    def interrupt(self, run: Run, message: str, *, state: Ended = "interrupted") -> None:
        """Record that a run's process has ended; on a full disk, later, when there is space."""
        self._remember(run, run.interrupt(message, state=state))

    def fail(self, run: Run, error: WorkbenchError) -> None:
        """Record why a run ended if it could not record that itself; others' runs stay as is."""
        state: Ended = "stopped" if isinstance(error, Stopped) else "failed"
        end = End(state=state, message=error.what, cure=error.cure, error=type(error).__name__)
        self._remember(run, None if run.end(end) else end)

    def sweep(self, message: str, *, own: bool = False) -> list[Run]:
        """Mark runs whose process has ended as interrupted; returns those runs.

        `own`: also the runs that wait for this process, which will not start them.
        """
        for deleted in self.root.glob(".*.old"):  # left by a process that was killed
            shutil.rmtree(deleted, ignore_errors=True)
        gone = [run for run in self._going_on() if _is_gone(run, own=own)]
        for run in gone:
            self.interrupt(run, message)
        return gone

    def _going_on(self) -> list[Run]:
        known = [(run, self._read(run)) for run in self.all()]
        return [run for run, summary in known if summary and summary.state in UNDER_WAY]

    def _remember(self, run: Run, end: End | None) -> None:
        self._unwritten.pop(run.id, None)
        if end is not None:
            try:
                self._unwritten[run.id] = (run.status().claimed, end)
            except Damaged:
                log.error("The run %s ended: %s", run.id, end.message)

    def _summary(self, run: Run) -> RunSummary | None:
        """Describe a run as it is, even if its end could not be recorded."""
        summary = self._read(run)
        if summary is None or summary.state not in UNDER_WAY:
            return summary
        try:
            end = self._unwritten_end(run)
            return ended(summary, run, end) if end or run.is_abandoned() else summary
        except (OSError, Damaged):
            return None if not run.folder.exists() else describe(run)

    def _unwritten_end(self, run: Run) -> End | None:
        claimed, end = self._unwritten.get(run.id, (0.0, None))
        if end is None:
            return None
        if run.lock.is_taken() or run.status().claimed != claimed:
            self._unwritten.pop(run.id)  # it was resumed
            return None
        if time.monotonic() - self._tried > TRY_AGAIN_S:
            self._tried = time.monotonic()
            self._remember(run, None if run.end(end) else end)
        return end

    def _read(self, run: Run) -> RunSummary | None:
        """Describe a run by its files; unchanged files are not read again."""
        key = tuple(_mark(file) for file in run.described_by)
        known = self._summaries.get(run.id)
        if known is not None and known[0] == key:
            return known[1]
        try:
            summary = describe(run)
        except OSError:
            return None  # deleted meanwhile
        if not run.folder.exists():
            return None
        if summary.state != "damaged":  # so a repaired run is shown at once
            self._summaries[run.id] = (key, summary)
        return summary


def _is_run(folder: Path) -> bool:
    """Return whether a folder is a run's folder, complete or not."""
    return folder.is_dir() and any(os.path.lexists(folder / name) for name in PARTS)


def _is_gone(run: Run, *, own: bool) -> bool:
    if not run.is_alive():
        return True
    return own and _only_waits(run) and not run.waits_for_launch


def _only_waits(run: Run) -> bool:
    """Return whether a run has not started and only a user or this process can start it."""
    if run.lock.is_taken():
        return False
    status = run.known_status()
    return status.state == "queued" and (status.launched or status.pid == os.getpid())


def _mark(file: Path) -> tuple[int, ...]:
    """Return values that change whenever a file does; file times alone are too coarse."""
    try:
        stat = file.stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def installed_versions() -> dict[str, str]:
    """Return the versions of libraries that affect a run's numbers, without importing them."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
