"""What a running operation hears from outside, and what it tells: stop, abort, progress, pieces."""

import threading
import time
from collections.abc import Callable
from typing import Any

from backend.errors import Stopped

Emit = Callable[[dict[str, Any]], None]
PROGRESS_EVERY_S = 0.25


class Control:
    """One operation's ears and mouth. `stop` asks for a good end, `abort` for an immediate one."""

    def __init__(self, job_id: int, emit: Emit) -> None:
        self.job_id = job_id
        self._emit = emit
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._told = 0.0

    def hear(self, word: str) -> None:
        """Take a word from outside; called from another thread."""
        if word == "abort":
            self._abort.set()
        self._stop.set()

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    @property
    def abort_requested(self) -> bool:
        return self._abort.is_set()

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

    def piece(self, text: str) -> None:
        """Hand out a piece of streamed text."""
        self.piece_of(0, text)

    def piece_of(self, column: int, text: str) -> None:
        """Hand out a piece of one of several streamed texts."""
        self._emit({"type": "piece", "id": self.job_id, "text": text, "column": column})
