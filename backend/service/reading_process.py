"""The reading process: reads foreign files, chat templates and adapters outside the worker.

A foreign file or chat template may hang or take all memory. So previews, inspections and pre-flight
checks run in a separate process, which stays alive between them, has limits of time and memory, and
can be killed without affecting the session. It does one job at a time. The other jobs wait; if the
process had to be killed, they go to a new one.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

from backend.errors import Stopped, WorkbenchError, WorkerDied
from backend.service.jobs import Job
from backend.service.worker_process import Message, OnExit, Runtime

STOP_GRACE_S = 2.0
START_S = 120.0
"""How long a process may take to start, on a busy machine."""
IDLE_S = 600.0
"""After this idle time the process is ended, because it takes a few hundred MB."""
log = logging.getLogger(__name__)


class ReadingProcess:
    """One process and the jobs that wait for it. The caller holds the shared lock."""

    def __init__(
        self,
        start: Callable[[OnExit], Runtime],
        fail: Callable[[Job, WorkbenchError], None],
        *,
        lock: threading.RLock,
        limit_s: float,
    ) -> None:
        self._start = start
        self._fail = fail
        self._lock = lock
        self._limit_s = limit_s
        self._runtime: Runtime | None = None
        self._number = 0
        self._waiting: deque[tuple[Job, Message]] = deque()
        self._current: Job | None = None
        self._timer: threading.Timer | None = None
        self._is_ready = False

    def warm_up(self) -> None:
        """Start the process before it is needed; if that fails, the first job reports it."""
        try:
            self._running()
        except OSError as error:
            log.warning("The reading process cannot be started: %s", error)

    def submit(self, job: Job, message: Message) -> None:
        """Queue a job."""
        self._waiting.append((job, message))
        self._next()

    def holds(self, job: Job) -> bool:
        """Return whether a job runs or waits here."""
        return job is self._current or any(job is each for each, _ in self._waiting)

    def stop(self, job: Job) -> None:
        """Stop a job. It has nothing to save, so its process is killed soon if it does not end."""
        if job is not self._current:
            self._waiting = deque(each for each in self._waiting if each[0] is not job)
            self._fail(job, Stopped(f"{job.title} was stopped on request."))
        elif self._runtime is not None:
            self._runtime.send({"control": "stop", "id": job.id})
            self._end_after(STOP_GRACE_S, job, Stopped(f"{job.title} was stopped on request."))

    def ended(self, job: Job) -> None:
        """Start the next job: this one has its result or error."""
        if job is self._current:
            self._current = None
            self._set_timer(IDLE_S, self._close_idle)
            self._next()

    def let_go(self) -> Runtime | None:
        """Return the process, to be closed without the lock; the caller must end its jobs."""
        self._number += 1
        self._set_timer(None)
        runtime, self._runtime, self._current = self._runtime, None, None
        self._waiting.clear()
        return runtime

    # -- one job after the other -----------------------------------------------------------------

    def _next(self) -> None:
        while self._current is None and self._waiting:
            job, message = self._waiting.popleft()
            try:
                runtime = self._running()
            except OSError as error:
                self._fail(job, WorkerDied(f"{job.title} cannot start a process: {error}."))
                continue
            self._current = job
            self._limit(job)
            runtime.send(message)

    def ready(self) -> None:
        """Note that the process has started; the time limit of a job counts from now."""
        self._is_ready = True
        if self._current is not None and not self._current.stops:
            self._limit(self._current)

    def _limit(self, job: Job) -> None:
        seconds = self._limit_s if self._is_ready else START_S + self._limit_s
        self._end_after(seconds, job, self._too_slow(job))

    def _running(self) -> Runtime:
        if self._runtime is None:
            self._number += 1
            self._is_ready = False
            number = self._number
            self._runtime = self._start(lambda reason: self._on_exit(number, reason))
        return self._runtime

    def _too_slow(self, job: Job) -> WorkbenchError:
        return WorkbenchError(
            f"{job.title} took longer than {self._limit_s:.0f} seconds and was ended.",
            cure="The file may be too large to check, or the file or the model's chat template "
            "never ends. The session is not affected.",
        )

    # -- its end ---------------------------------------------------------------------------------

    def _end_after(self, seconds: float, job: Job, error: WorkbenchError) -> None:
        self._set_timer(seconds, lambda: self._end_hanging(job, error))

    def _end_hanging(self, job: Job, error: WorkbenchError) -> None:
        """Kill the process if it is still on this job, and continue with the others."""
        with self._lock:
            if job is self._current and self._runtime is not None:
                self._runtime.kill()
                self._lose(error)

    def _on_exit(self, number: int, reason: str) -> None:
        with self._lock:
            if number == self._number and self._runtime is not None:
                title = self._current.title if self._current is not None else ""
                self._lose(WorkerDied(f"{title} was interrupted. Its process ended: {reason}."))

    def _lose(self, error: WorkbenchError) -> None:
        self._number += 1  # later messages about the end of the old process are ignored
        job, self._runtime, self._current = self._current, None, None
        self._set_timer(None)
        if job is not None:
            self._fail(job, error)
        self._next()

    def _close_idle(self) -> None:
        with self._lock:
            if self._current is not None or self._runtime is None:
                return
            self._number += 1
            runtime, self._runtime = self._runtime, None
        runtime.close()

    def _set_timer(self, seconds: float | None, act: Callable[[], None] = lambda: None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, act) if seconds is not None else None
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
