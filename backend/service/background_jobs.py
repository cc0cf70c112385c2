"""Background jobs: reading files, and operations in a separate process.

An operation that takes much memory or time gets its own process (`Operation.beside`). Foreign files
are read in the reading process, our own adapters in an idle worker. Knows of the session only what
it needs to start a job (`Link`).
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, get_args

from backend import requests as rq
from backend import results as rs
from backend.errors import Stopped, WorkbenchError, WorkerDied
from backend.operations import OPERATIONS
from backend.runs.run_store import Runs
from backend.service import recovery
from backend.service.jobs import Job
from backend.service.reading_process import ReadingProcess
from backend.service.worker_process import Message, OnMessage, Runtime, start_beside, start_reading
from backend.settings import Settings

SHOWN_AFTER_S = 2.0
"""A file check that takes longer is shown, with a Stop button."""
NOTHING = "Nothing was written."


class Link(Protocol):
    """What background jobs need of `EngineLink`."""

    settings: Settings
    lock: Any
    version: int
    base: rs.ModelFacts | None
    free_gpu_bytes: int | None
    runs: Runs
    current: Job | None

    @property
    def idle(self) -> bool: ...
    def require_open(self) -> None: ...
    def new_job(self, request: rq.Request) -> Job: ...
    def jobs(self) -> list[Job]: ...
    def send(self, message: Message) -> None: ...
    def on_message(self, message: Message) -> None: ...
    def release(self, job: Job) -> None: ...
    def fail(self, job: Job, error: WorkbenchError) -> None: ...
    def kill_later(self, job: Job) -> None: ...


class SideJobs:
    """All background jobs and their processes. Guarded by the link's lock."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.runtimes: dict[int, Runtime | None] = {}
        """The processes of jobs that have their own; None while one is starting."""
        self._slow: list[int] = []
        self._reading = ReadingProcess(
            lambda on_exit: start_reading(link.settings, self._on_reading_message, on_exit),
            link.fail,
            lock=link.lock,
            limit_s=link.settings.look_seconds,
        )

    def warm_up(self) -> None:
        """Start the reading process before it is needed."""
        if self._link.settings.runtime == "process":
            self._reading.warm_up()

    def begin(self, request: rq.Request) -> Job:
        """Start a request that never changes the session, in a process that can be killed."""
        link = self._link
        with link.lock:
            link.require_open()
            job = link.new_job(request)
            operation = OPERATIONS[type(request)]
            if link.settings.runtime == "inline" or not operation.beside(request):
                self._begin_look(job, trusted=operation.trusted(request))
                return job
            job.progress("Starting")
            self.runtimes[job.id] = None  # starting: it is not lost if the worker ends
        return self._begin_own_process(job)

    def begin_apart(
        self, request: rq.Request, run_id: str, begin: Callable[[int, OnMessage], Runtime]
    ) -> Job:
        """Start or follow a run in separate processes; it is shown as a background job."""
        link = self._link
        with link.lock:
            link.require_open()
            job = link.new_job(request)
            job.run_id, job.beside = run_id, True
            try:
                self.runtimes[job.id] = begin(job.id, self._on_message)
            except Exception:
                link.release(job)
                raise
            return job

    def completes(self, job: Job, result: rs.Result) -> bool:
        """Return whether the idle worker completes the result, which needs the base's weights."""
        wanted = OPERATIONS[type(job.request)].needs_weights(job.request, result)
        free = self._link.idle and self._link.base is not None and not job.stops
        if not (wanted and free and self._reading.holds(job)):
            return False
        self._reading.ended(job)
        self._send_to_worker(job)
        return True

    def stop(self, job_id: int) -> None:
        """Ask a job to stop; a second call stops it now. Does nothing for an unknown job."""
        link = self._link
        with link.lock:
            job = next((job for job in self.shown() if job.id == job_id), None)
            if job is None:
                return
            job.stops += 1
            link.version += 1
            if self._reading.holds(job):
                self._reading.stop(job)
            elif (own := self.runtimes.get(job_id)) is not None:
                own.send({"control": "stop", "id": job.id})
                if job.stops > 1:
                    own.kill()
            elif job_id not in self.runtimes:
                link.send({"control": "stop", "id": job.id})
                if job.stops == 2:
                    link.kill_later(job)

    def shown(self) -> list[Job]:
        """Return the jobs that are shown, oldest first."""
        return [job for job in self._link.jobs() if job.beside or _is_slow_look(job)]

    def note_time(self) -> None:
        """Increase the version if a file check has taken so long that it is now shown."""
        slow = [job.id for job in self._link.jobs() if _is_slow_look(job)]
        if slow != self._slow:
            self._slow = slow
            self._link.version += 1

    def holds(self, job: Job) -> bool:
        """Return whether a job runs, or will run, outside the worker."""
        return job.id in self.runtimes or self._reading.holds(job)

    def runtime_of(self, job: Job, otherwise: Runtime | None) -> Runtime | None:
        """Return the process of a job; `otherwise` if it does not have its own."""
        return self.runtimes.get(job.id, otherwise)

    def ended(self, job: Job) -> None:
        """Release the process of a finished job."""
        self._reading.ended(job)
        own = self.runtimes.pop(job.id, None)
        if own is not None:
            threading.Thread(target=own.close, name="side-close", daemon=True).start()

    def returned_bytes(self) -> int:
        """Return about how much memory the current runs will free when they end."""
        runs = [job for job in self._link.jobs() if job.run_id is not None]
        own = (self.runtimes.get(job.id) for job in runs)
        freed = sum(runtime.memory_bytes() for runtime in own if runtime is not None)
        current = self._link.current
        if current is None or current.run_id is None:
            return freed
        try:
            status = self._link.runs.get(current.run_id).known_status()
        except WorkbenchError:
            return freed
        return freed + (status.predicted_memory_bytes if status.step else 0)

    def let_go(self) -> list[Runtime]:
        """Return all processes, to be closed without the lock."""
        found = [*self.runtimes.values(), self._reading.let_go()]
        return [runtime for runtime in found if runtime is not None]

    # -- choosing a process ------------------------------------------------------------------------

    def _begin_look(self, job: Job, *, trusted: bool) -> None:
        if self._link.settings.runtime == "inline" or (trusted and self._link.idle):
            self._send_to_worker(job)
        else:
            self._reading.submit(job, self._message(job))

    def _send_to_worker(self, job: Job) -> None:
        """Raises nothing, because the caller may not be the one who waits for the job."""
        try:
            self._link.send(self._message(job))
        except OSError as error:
            self._link.fail(job, WorkerDied(recovery.cannot_start(error)))

    def _begin_own_process(self, job: Job) -> Job:
        link = self._link
        try:
            side = start_beside(
                link.settings,
                self._on_message,
                lambda reason: self._on_exit(job, reason),
                streams=isinstance(job.request, rq.Merge),
            )
        except OSError as error:
            link.fail(job, WorkerDied(f"{job.title} cannot start a process: {error}."))
            return job
        with link.lock:
            lost = job.done()
            if not lost:
                self.runtimes[job.id] = side
        if lost:
            side.close()
        else:
            side.send(self._message(job))
        return job

    def _message(self, job: Job) -> Message:
        base = self._link.base
        return {
            **job.message(),
            "base": base.model_dump(mode="json") if base else None,
            "free_gpu_bytes": self._link.free_gpu_bytes,
            "returned_bytes": self.returned_bytes(),
        }

    def _on_reading_message(self, message: Message) -> None:
        if message["type"] == "ready":
            with self._link.lock:
                self._reading.ready()
        else:
            self._on_message(message)

    def _on_message(self, message: Message) -> None:
        """Pass on a message of another process, except about its own session."""
        if message["type"] != "session":
            self._link.on_message(message)

    def _on_exit(self, job: Job, reason: str) -> None:
        recovery.sweep(job)
        if job.stops:
            self._link.fail(job, Stopped(f"{job.title} was stopped on request. {NOTHING}"))
        else:
            self._link.fail(job, _broke_off(job, reason))


def _broke_off(job: Job, reason: str) -> WorkerDied:
    return WorkerDied(
        f"{job.title} was interrupted. Its process ended: {reason}. {NOTHING}",
        cure="The session is not affected. Try again.",
    )


def _is_slow_look(job: Job) -> bool:
    is_look = isinstance(job.request, get_args(rq.SideRequest))
    return is_look and time.monotonic() - job.started > SHOWN_AFTER_S
