"""What a running operation hears from outside, and what it tells.

It hears stop and abort, and a run pause, resume and save too; it tells progress and pieces.
"""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from backend.errors import Stopped

Emit = Callable[[dict[str, Any]], None]
Around = Callable[[], AbstractContextManager[None]]
Serve = Callable[[Around, float], bool]
"""Serves one operation that may run while a run is paused, within a context of the run's; waits for
one so many seconds, and tells whether there was one."""
PROGRESS_EVERY_S = 0.25


class Control:
    """One operation's ears and mouth. `stop` asks for a good end, `abort` for an immediate one."""

    def __init__(self, job_id: int, emit: Emit, serve: Serve | None = None) -> None:
        self.job_id = job_id
        self.serve = serve or _nobody_asks
        self._emit = emit
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._pause = threading.Event()
        self._save = threading.Event()
        self._changes: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._told = 0.0

    def hear(self, word: str, content: dict[str, Any] | None = None) -> None:
        """Take a word from outside, with what belongs to it; called from another thread."""
        if word in ("stop", "abort"):
            self._stop.set()
        if word == "abort":
            self._abort.set()
        elif word == "pause":
            self._pause.set()
        elif word == "resume":
            self._pause.clear()
        elif word == "save":
            self._save.set()
        elif word == "adjust" and content:
            self._changes.put(content["changes"])

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    @property
    def abort_requested(self) -> bool:
        return self._abort.is_set()

    @property
    def pause_requested(self) -> bool:
        return self._pause.is_set()

    def take_save(self) -> bool:
        """Tell whether somebody asked for a checkpoint since the last call."""
        asked = self._save.is_set()
        self._save.clear()
        return asked

    @property
    def changes_wait(self) -> bool:
        """Whether somebody asked for other settings of the run."""
        return not self._changes.empty()

    def take_changes(self) -> list[dict[str, Any]]:
        """Return the changes that were asked for since the last call."""
        taken = []
        while not self._changes.empty():
            taken.append(self._changes.get())
        return taken

    def check_stop(self) -> None:
        """Raise Stopped where somebody asked for it: for work that has no half result."""
        if self._stop.is_set():
            raise Stopped("Stopped, as asked. Nothing was changed.")

    def check_abort(self) -> None:
        """Raise Stopped where somebody asked for an immediate end."""
        if self._abort.is_set():
            raise Stopped("Ended at once, as asked.")

    def progress(
        self,
        text: str,
        fraction: float | None = None,
        seconds_left: float | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Tell how far the work is, a few times a second at most."""
        now = time.monotonic()
        if not force and now - self._told < PROGRESS_EVERY_S:
            return
        self._told = now
        self._emit(
            {
                "type": "progress",
                "id": self.job_id,
                "text": text,
                "fraction": fraction,
                "seconds_left": seconds_left,
            }
        )

    def tell(self, type: str, **content: object) -> None:
        """Say something that belongs to this operation."""
        self._emit({"type": type, "id": self.job_id, **content})

    def piece(self, text: str) -> None:
        """Hand out a piece of streamed text."""
        self.piece_of(0, text)

    def piece_of(self, column: int, text: str) -> None:
        """Hand out a piece of one of several streamed texts."""
        self._emit({"type": "piece", "id": self.job_id, "text": text, "column": column})


def _nobody_asks(around: Around, wait: float) -> bool:
    time.sleep(wait)
    return False
