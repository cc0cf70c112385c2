"""Waiting training runs: stored in the workspace and started one after the other.

The queue is a file, so it outlives the app. A service processes it only after `run_queue`; a
command that opens the same workspace for a moment does not.
"""

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from backend.catalogue.methods import method_of
from backend.errors import Busy, Damaged, DiskFull, NotFound, WorkbenchError
from backend.files import damaged_files
from backend.files.atomic_files import write_text
from backend.permissions import Caller
from backend.requests import Train
from backend.results import DataMark, ModelFacts, QueuedRun
from backend.sizes import size_text

LOOK_EVERY_S = 0.5
ROOM_BYTES = 50 * 1024**2
"""A run starts only with this much free space; its checkpoints soon need more."""
log = logging.getLogger(__name__)


class Waiting(BaseModel):
    """One waiting run, for the base that was loaded when it was added."""

    model_config = ConfigDict(frozen=True)

    id: str
    added: float
    train: Train
    base_name: str
    base_fingerprint: str
    caller: Caller
    mark: DataMark | None = None
    """Its data when it was put in; None if it was not checked then."""
    question: str = ""
    """What has changed in its data since, until that is decided."""

    @property
    def dated(self) -> Train:
        """Its request with the day on which it was put in, for a template that shows the date."""
        day = date.fromtimestamp(self.added).isoformat()
        return self.train.model_copy(update={"date": self.train.date or day})

    def describe(self, base: ModelFacts | None) -> QueuedRun:
        """Describe it for lists, with what it waits for apart from its turn."""
        fits = base is not None and base.fingerprint == self.base_fingerprint
        waits_for = "" if fits else f"the base {self.base_name}, which is not loaded"
        return QueuedRun(
            id=self.id,
            name=self.train.name,
            data=self.train.data,
            method=method_of(self.train.adapter).title,
            rank=self.train.adapter.rank,
            experts=self.train.adapter.experts,
            added=self.added,
            waits_for=waits_for or ("a decision about its data" if self.question else ""),
            question=self.question,
        )


_LIST = TypeAdapter(list[Waiting])
_ENTRIES = TypeAdapter(list[dict[str, Any]])


def parse(text: str) -> list[Waiting]:
    """Read what `TrainingQueue.to_json` wrote; raises ValueError."""
    return _LIST.validate_json(text)


class TrainingQueue:
    """The waiting runs in order. A caller that changes it must hold the service's lock."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._up = ""
        self._damaged = False
        self.problem = ""
        """A sentence about what could not be read in the file; empty if all could."""
        self._waiting = self._load()

    def add(
        self, train: Train, base: ModelFacts, caller: Caller, mark: DataMark | None = None
    ) -> Waiting:
        """Add a run at the end; raises DiskFull."""
        item = Waiting(
            id=uuid.uuid4().hex[:8],
            added=time.time(),
            train=train,
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            caller=caller,
            mark=mark,
        )
        self._replace([*self._waiting, item])
        return item

    def get(self, id: str) -> Waiting:
        """Return a waiting run; raises NotFound."""
        found = next((item for item in self._waiting if item.id == id), None)
        if found is None:
            raise NotFound("This run is no longer waiting.", cure="Look under Runs.")
        return found

    def note(self, id: str, *, mark: DataMark | None, question: str = "") -> None:
        """Record a run's data and the question about it; raises NotFound or DiskFull."""
        known = self.get(id).model_copy(update={"mark": mark, "question": question})
        self._replace([known if item.id == id else item for item in self._waiting])

    def to_json(self) -> str:
        """Return all waiting runs as JSON."""
        return _LIST.dump_json(self._waiting, indent=1).decode()

    def take_over(self, items: list[Waiting]) -> None:
        """Add runs from another machine at the end; raises DiskFull."""
        self._replace([*self._waiting, *items])

    def remove(self, id: str) -> bool:
        """Remove a run; False if it is no longer waiting. Raises DiskFull."""
        kept = [item for item in self._waiting if item.id != id]
        found = len(kept) < len(self._waiting)
        if found:
            self._replace(kept)
        return found

    @contextmanager
    def turn_of(self, item: Waiting) -> Iterator[None]:
        """Start a run in this block. It leaves the queue afterwards; its name is not reserved now.

        If the disk is full or the model is busy, it stays in the queue; after any other error it is
        removed. The error is raised again.
        """
        self._up = item.id
        try:
            yield
        except (Busy, DiskFull):
            raise
        except WorkbenchError:
            self._drop(item)
            raise
        else:
            self._drop(item)
        finally:
            self._up = ""

    def _drop(self, item: Waiting) -> None:
        """Remove an entry, even if the file cannot be written, because its run has started."""
        kept = [each for each in self._waiting if each.id != item.id]
        try:
            self._replace(kept)
        except DiskFull as error:
            log.warning("The queue could not be written: %s", error)
            self._waiting = kept

    def next_for(self, base: ModelFacts) -> Waiting | None:
        """Return the first run that waits for this base, and for no decision."""
        ready = (i for i in self._waiting if not i.question)
        return next((i for i in ready if i.base_fingerprint == base.fingerprint), None)

    def ids(self) -> set[str]:
        """Return the ids of all waiting runs."""
        return {item.id for item in self._waiting}

    def names(self) -> set[str]:
        """Return the names of the adapters that the waiting runs will create."""
        return {item.train.name for item in self._waiting if item.id != self._up}

    def describe(self, base: ModelFacts | None) -> tuple[QueuedRun, ...]:
        """Describe all waiting runs in order."""
        return tuple(item.describe(base) for item in self._waiting)

    def _replace(self, waiting: list[Waiting]) -> None:
        if self._damaged:
            damaged_files.keep_aside(self._file)
            self._damaged = False
        write_text(self._file, _LIST.dump_json(waiting, indent=1).decode())
        self._waiting = waiting

    def _load(self) -> list[Waiting]:
        """Read what can be read; the file is not changed before the next write."""
        nothing: list[dict[str, Any]] = []
        try:
            entries = damaged_files.read_if_there(
                self._file, _ENTRIES.validate_json, missing=nothing
            )
        except Damaged as error:
            return self._with_problem([], error.what)
        waiting = [item for entry in entries if (item := _waiting(entry))]
        lost = len(entries) - len(waiting)
        if lost:
            what = f"{lost} of {len(entries)} entries of {self._file.name} cannot be read."
            return self._with_problem(waiting, what)
        return waiting

    def _with_problem(self, waiting: list[Waiting], what: str) -> list[Waiting]:
        self._damaged = True
        self.problem = (
            f"Some waiting runs may be lost: {what} The file will be kept under another name in "
            f"{self._file.parent} before a new one is written."
        )
        log.warning("%s", self.problem)
        return waiting


def _waiting(entry: object) -> Waiting | None:
    try:
        return Waiting.model_validate(entry)
    except ValidationError:
        return None


class QueueRunner:
    """Calls `start_next` repeatedly until it is closed."""

    def __init__(self, start_next: Callable[[], None]) -> None:
        self._start_next = start_next
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="queue", daemon=True)
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """Stop calling `start_next`."""
        self._closed.set()
        self._thread.join(10)

    def _loop(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S):
            try:
                self._start_next()
            except Exception as error:  # one bad entry must not end the queue
                log.error("The queue could not start its next run.", exc_info=error)


def require_room(workspace: Path) -> None:
    """Raise DiskFull if there is too little disk space for a run."""
    free = shutil.disk_usage(workspace).free
    if free < ROOM_BYTES:
        raise DiskFull(
            f"Only {size_text(free)} are free.", cure=f"A run needs {size_text(ROOM_BYTES)}."
        )
