"""Job control: commands to a running operation, and its progress and text back.

Commands are stop and abort; a run also takes pause, resume, save and changed settings. Knows
nothing of what an operation does.
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
"""Runs one operation that is allowed while a run is paused, inside the given context. Waits for it
up to the given seconds; returns whether there was one."""
PROGRESS_EVERY_S = 0.25


class Control:
    """One operation's commands and messages. `stop` ends with a saved state, `abort` at once."""

    def __init__(self, job_id: int, emit: Emit, serve: Serve | None = None) -> None:
        self.job_id = job_id
        self.serve = serve or _serve_nothing
        self._emit = emit
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._pause = threading.Event()
        self._save = threading.Event()
        self._changes: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._told = 0.0

    def hear(self, word: str, content: dict[str, Any] | None = None) -> None:
        """Receive a command and its content; called from another thread."""
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
        """Return whether a checkpoint was requested since the last call."""
        asked = self._save.is_set()
        self._save.clear()
        return asked

    @property
    def changes_wait(self) -> bool:
        """Whether changed settings of the run are waiting."""
        return not self._changes.empty()

    def take_changes(self) -> list[dict[str, Any]]:
        """Return the changes that were requested since the last call."""
        taken = []
        while not self._changes.empty():
            taken.append(self._changes.get())
        return taken

    def check_stop(self) -> None:
        """Raise Stopped if a stop was requested: for work that has no partial result."""
        if self._stop.is_set():
            raise Stopped("Stopped, as requested. Nothing was changed.")

    def check_abort(self) -> None:
        """Raise Stopped if an immediate stop was requested."""
        if self._abort.is_set():
            raise Stopped("Stopped immediately on request.")

    def progress(
        self,
        text: str,
        fraction: float | None = None,
        seconds_left: float | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Report progress, a few times a second at most."""
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
        """Send a message that belongs to this operation."""
        self._emit({"type": type, "id": self.job_id, **content})

    def piece(self, text: str) -> None:
        """Send a piece of streamed text."""
        self.piece_of(0, text)

    def piece_of(self, column: int, text: str) -> None:
        """Send a piece of one of several streamed texts."""
        self._emit({"type": "piece", "id": self.job_id, "text": text, "column": column})


def _serve_nothing(around: Around, wait: float) -> bool:
    time.sleep(wait)
    return False
