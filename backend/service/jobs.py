"""A job: one operation, from its request to its result."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

from backend.errors import WorkbenchError
from backend.requests import Request
from backend.results import AdapterInfo, JobInfo, Result


class Job:
    """One operation that was started; done when it has a result or an error."""

    def __init__(self, id: int, request: Request, title: str, operation: str) -> None:
        self.id = id
        self.request = request
        self.title = title
        self.operation = operation
        self.run_id: str | None = None
        self.beside = False
        """Whether it is a background job that is shown to the user."""
        self.stops = 0
        self.wish: Literal["", "pause", "resume"] = ""
        """The last command to a run that it has not carried out yet."""
        self.half_trained: AdapterInfo | None = None
        """The adapter of a run that is paused."""
        self.started = time.monotonic()
        self._text = ""
        self._fraction: float | None = None
        self._seconds_left: float | None = None
        self._done = threading.Event()
        self._result: Result | None = None
        self._error: WorkbenchError | None = None
        self._pieces: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()

    def message(self) -> dict[str, Any]:
        """Return the message that starts it in the engine."""
        request = self.request.model_dump(mode="json")
        message = {"id": self.id, "op": self.operation, "request": request}
        return message if self.run_id is None else {**message, "run_id": self.run_id}

    def done(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait until the job has a result or an error; False if it has not by then."""
        return self._done.wait(timeout)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the typed result; raises the job's WorkbenchError, or TimeoutError."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"{self.title} is not done after {timeout} s.")
        if self._error is not None:
            raise self._error
        return self._result

    def pieces(self) -> Iterator[str]:
        """Yield streamed text until the job is done; raises its error."""
        for _, text in self.column_pieces():
            yield text

    def column_pieces(self) -> Iterator[tuple[int, str]]:
        """Like `pieces`, each with the index of its answer."""
        while (piece := self._pieces.get()) is not None:
            yield piece
        self.result()

    def add_piece(self, text: str, column: int = 0) -> None:
        self._pieces.put((column, text))

    def progress(
        self, text: str = "", fraction: float | None = None, seconds_left: float | None = None
    ) -> None:
        self._text, self._fraction, self._seconds_left = text, fraction, seconds_left

    def finish(self, result: Result) -> None:
        self._result = result
        self._end()

    def fail(self, error: WorkbenchError) -> None:
        self._error = error
        self._end()

    @property
    def paused(self) -> bool:
        return self.half_trained is not None

    def info(self, *, answering: str = "") -> JobInfo:
        return JobInfo(
            id=self.id,
            title=self.title,
            operation=self.operation,
            run_id=self.run_id,
            text=self._text,
            fraction=self._fraction,
            seconds_left=self._seconds_left,
            stopping=self.stops > 0,
            paused=self.paused,
            pausing=self.wish == "pause",
            answering=answering,
            half_trained=self.half_trained,
        )

    def _end(self) -> None:
        self._done.set()
        self._pieces.put(None)
