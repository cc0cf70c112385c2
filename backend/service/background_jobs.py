"""Work beside the session: looks at files, and what has a process of its own.

What takes much memory or time gets a process of its own (`Operation.beside`). Looks at foreign
files go to the reading process, those at our own adapters to an idle worker. Knows of the session
only what it needs to start them (`Link`).
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, get_args

from backend import requests as rq
from backend import results as rs
from backend.errors import Stopped, WorkbenchError, WorkerDied
from backend.operations import OPERATIONS
from backend.service import recovery
from backend.service.jobs import Job
from backend.service.reading_process import ReadingProcess
from backend.service.worker_process import Message, OnMessage, Runtime, start_beside, start_reading
from backend.settings import Settings

SHOWN_AFTER_S = 2.0
"""A look that takes longer is shown, with its Stop."""
NOTHING = "Nothing was written."


class Link(Protocol):
    """What the line to the engine does for work beside the session."""

    settings: Settings
    lock: Any
    version: int
    base: rs.ModelFacts | None
    free_gpu_bytes: int | None

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
    """All work beside the session, and the processes that do it. Guarded by the link's lock."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.runtimes: dict[int, Runtime | None] = {}
        """Of jobs with a process of their own; None while it is on its way."""
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
        """Start what never changes the session, in a process that can be ended without it."""
        link = self._link
        with link.lock:
            link.require_open()
            job = link.new_job(request)
            operation = OPERATIONS[type(request)]
            if link.settings.runtime == "inline" or not operation.beside(request):
                self._begin_look(job, trusted=operation.trusted(request))
                return job
            job.progress("Starting a process of its own")
            self.runtimes[job.id] = None  # on its way: the worker's death is not its own
        return self._begin_own_process(job)

    def begin_apart(
        self, request: rq.Request, run_id: str, begin: Callable[[int, OnMessage], Runtime]
    ) -> Job:
        """Start, or follow, a run that has processes of its own; it is shown beside the session."""
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
        """Let the idle worker look as well, where the weights say what files could not."""
        wanted = OPERATIONS[type(job.request)].needs_weights(job.request, result)
        free = self._link.idle and self._link.base is not None and not job.stops
        if not (wanted and free and self._reading.holds(job)):
            return False
        self._reading.ended(job)
        self._send_to_worker(job)
        return True

    def stop(self, job_id: int) -> None:
        """Ask a job to stop; asked again, it ends at once. Unknown: nothing."""
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
        """Return the work that is worth showing, oldest first."""
        return [job for job in self._link.jobs() if job.beside or _is_slow_look(job)]

    def note_time(self) -> None:
        """Bump the version where a look has taken so long that it is shown from now on."""
        slow = [job.id for job in self._link.jobs() if _is_slow_look(job)]
        if slow != self._slow:
            self._slow = slow
            self._link.version += 1

    def holds(self, job: Job) -> bool:
        """Tell whether a job is, or will be, done outside the worker."""
        return job.id in self.runtimes or self._reading.holds(job)

    def runtime_of(self, job: Job, otherwise: Runtime | None) -> Runtime | None:
        """Return the process that does a job, the worker where it has none of its own."""
        return self.runtimes.get(job.id, otherwise)

    def ended(self, job: Job) -> None:
        """Let go of what did a job that is over."""
        self._reading.ended(job)
        own = self.runtimes.pop(job.id, None)
        if own is not None:
            threading.Thread(target=own.close, name="side-close", daemon=True).start()

    def let_go(self) -> list[Runtime]:
        """Give all processes away, to be closed without the lock."""
        found = [*self.runtimes.values(), self._reading.let_go()]
        return [runtime for runtime in found if runtime is not None]

    # -- where it is done ------------------------------------------------------------------------

    def _begin_look(self, job: Job, *, trusted: bool) -> None:
        if self._link.settings.runtime == "inline" or (trusted and self._link.idle):
            self._send_to_worker(job)
        else:
            self._reading.submit(job, self._message(job))

    def _send_to_worker(self, job: Job) -> None:
        """Raises nothing: who comes here may not be who waits for the job."""
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
        }

    def _on_reading_message(self, message: Message) -> None:
        if message["type"] == "ready":
            with self._link.lock:
                self._reading.ready()
        else:
            self._on_message(message)

    def _on_message(self, message: Message) -> None:
        """Pass on what another process says; it has a session of its own, which is not ours."""
        if message["type"] != "session":
            self._link.on_message(message)

    def _on_exit(self, job: Job, reason: str) -> None:
        recovery.sweep(job)
        if job.stops:
            self._link.fail(job, Stopped(f"{job.title} was ended at once, as asked. {NOTHING}"))
        else:
            self._link.fail(job, _broke_off(job, reason))


def _broke_off(job: Job, reason: str) -> WorkerDied:
    return WorkerDied(
        f"{job.title} broke off: its process is gone, {reason}. {NOTHING}",
        cure="The session is unharmed. Try again.",
    )


def _is_slow_look(job: Job) -> bool:
    is_look = isinstance(job.request, get_args(rq.SideRequest))
    return is_look and time.monotonic() - job.started > SHOWN_AFTER_S
