"""The service's link to the engine: its process, its jobs, its end and its restart.

Holds the session's last known state (base, active adapters), the only model lock, and the recipe
from which a new engine restores the session. Knows nothing of what operations mean. Every change
increases `version`.
"""

import logging
import threading
import time
from typing import Literal

from backend import requests as rq
from backend import results as rs
from backend.errors import DiskFull, NotFound, Stopped, WorkbenchError, WorkerDied
from backend.operations import OPERATIONS
from backend.runs.run_store import Runs
from backend.service import pauses, recovery
from backend.service.background_jobs import SideJobs
from backend.service.job_results import outcome_of, unreadable
from backend.service.jobs import Job
from backend.service.worker_process import (
    MemorySample,
    Message,
    Runtime,
    StartRuntime,
    kind_of,
    start_runtime,
)
from backend.settings import Settings
from backend.workspace.session_recipe import Recipe

ABORT_GRACE_S = 5.0
CLOSE_GRACE_S = 20.0
log = logging.getLogger(__name__)


class EngineLink:
    """One engine at a time, and at most one model job on it. Hold `lock` to check and then act."""

    def __init__(self, settings: Settings, runs: Runs, start: StartRuntime | None = None) -> None:
        self.settings = settings
        self.runs = runs
        self.lock = threading.RLock()
        self.version = 0
        self.current: Job | None = None
        self.guest: Job | None = None
        """What uses the model while the current run is paused."""
        self.base: rs.ModelFacts | None = None
        self.active: rq.Variant = []
        self.status: tuple[rs.AdapterStatus, ...] = ()
        self.irregular = ""
        self.slot: rs.SlotStatus | None = None
        self.free_gpu_bytes: int | None = None
        """Free memory of the base's GPU after the last operation; None on a CPU."""
        self.recipe = Recipe()
        self.notice: rs.Notice | None = None
        self._jobs: dict[int, Job] = {}
        self.sides = SideJobs(self)
        self._next_id = 1
        self._replay = recovery.Replay(self.begin)
        self._memory = MemorySample()
        self._closed = False
        self._start = start or start_runtime
        self._runtime: Runtime | None = None
        try:
            self._runtime = self._start_runtime()
        except OSError as error:
            self.say("bad", recovery.cannot_start(error))

    # -- jobs ------------------------------------------------------------------------------------

    def require_free(self, request: rq.Request | None = None) -> None:
        """Raise Busy if the model is not free for this request, Stopped if all is closed."""
        self.require_open()
        pauses.require_open(self.current, self.guest, request)

    def require_open(self) -> None:
        """Raise Stopped if the service is closed."""
        if self._closed:
            raise Stopped("The workbench is closed.")

    def require_base(self) -> rs.ModelFacts:
        """Return the loaded base; raises NotFound if there is none."""
        if self.base is None:
            raise NotFound("No base model is loaded.", cure="Load one first: the starter is quick.")
        return self.base

    def begin(self, request: rq.Request, *, run_id: str | None = None, owner: bool = False) -> Job:
        """Start a model job; the caller holds the lock and has checked that the model is free."""
        job = self.new_job(request)
        job.run_id = run_id
        if self.current is None:
            self.current = job
        else:
            self.guest = job
        try:
            self.send({**job.message(), "owner": True} if owner else job.message())
        except OSError as error:  # without a process the session must not stay busy
            self.release(job)
            raise WorkerDied(recovery.cannot_start(error)) from error
        return job

    @property
    def idle(self) -> bool:
        """Whether the worker could start a job now."""
        return self.current is None and self._runtime is not None

    def jobs(self) -> list[Job]:
        """Return all unfinished jobs, oldest first."""
        return list(self._jobs.values())

    def new_job(self, request: rq.Request) -> Job:
        operation = OPERATIONS[type(request)]
        job = Job(self._next_id, request, operation.title(request), rq.name_of(request))
        job.beside = operation.beside(request)
        self._next_id += 1
        self.version += 1
        self._jobs[job.id] = job
        return job

    def stop(self) -> None:
        """Ask the running job to stop; a second call stops it now. Does nothing if idle."""
        with self.lock:
            job = self.current
            if job is None or self._runtime is None:
                return
            job.stops += 1
            self.version += 1
            self._runtime.send({"control": "stop" if job.stops == 1 else "abort", "id": job.id})
        if job.stops == 2:
            self.kill_later(job)

    def stop_job(self, job: Job, *, wait: bool = True) -> None:
        """Stop this job if it runs, and wait until the model is free for the next one."""
        with self.lock:
            if self.current is job:
                self.stop()
            elif self.guest is job:
                job.stops += 1
                self.tell(job, "stop")
        if wait:
            job.wait(CLOSE_GRACE_S)

    def tell(self, job: Job, command: str, **content: object) -> None:
        """Send a command to a running job."""
        self.version += 1
        if (runtime := self.sides.runtime_of(job, self._runtime)) is not None:
            runtime.send({"control": command, "id": job.id, **content})

    def restore(self) -> Job | None:
        """Restore the saved session, or load the starter model if none was saved.

        Raises WorkerDied if no model process can be started; it can be called again.
        """
        with self.lock:
            self.recipe, problem = Recipe.restore(self.settings.session_file)
            if problem:  # in addition to messages from opening the workspace
                self.say("bad", f"{self.notice.text if self.notice else ''} {problem}".strip())
            self.sides.warm_up()
            try:
                return self._replay.start(self.recipe)
            except WorkerDied as error:
                self.say("bad", str(error))
                raise

    def close(self) -> None:
        """Close the engine: training is stopped and saved first, other jobs end with Stopped."""
        self._end_training_well()
        with self.lock:
            self._closed = True
            runtime, self._runtime = self._runtime, None
            jobs, sides = list(self._jobs.values()), self.sides.let_go()
        for engine in (*sides, *([runtime] if runtime else [])):
            engine.close()
        for job in jobs:
            recovery.sweep(job)
            if not job.done():
                job.fail(Stopped("The workbench was closed."))

    def _end_training_well(self) -> None:
        with self.lock:
            job = self.current
            training = job is not None and job.run_id is not None
        if job is not None and training:
            if job.stops == 0:
                self.stop()
            job.wait(CLOSE_GRACE_S)

    # -- reading ---------------------------------------------------------------------------------

    def phase(self) -> rs.Phase:
        """Return the phase of the session."""
        if self._replay.job is not None:
            return "loading"  # also while the adapters of a restored session are turned on
        if self.current is not None and self.current.paused:
            return "paused"
        phase = OPERATIONS[type(self.current.request)].phase if self.current else None
        if phase is not None:
            return phase
        if self._runtime is None:
            return "down"
        if self.current is None and self.base is not None and (beside := self.sides.shown()):
            return OPERATIONS[type(beside[0].request)].phase or "ready"
        return "ready" if self.base is not None else "empty"

    def current_info(self) -> rs.JobInfo | None:
        """Describe the running model job."""
        guest = self.guest.title if self.guest else ""
        return self.current.info(answering=guest) if self.current else None

    def sample_memory(self) -> int:
        """Read the engine's memory from time to time; a small change keeps the version."""
        if self._memory.sample(self._runtime):
            self.version += 1
        return self._memory.known

    # -- engine messages ------------------------------------------------------------------------

    def _start_runtime(self) -> Runtime:
        return self._start(self.settings, self.on_message, self._on_worker_exit)

    def send(self, message: Message) -> None:
        if self._runtime is None:
            self._runtime = self._start_runtime()
        self._runtime.send(message)

    def on_message(self, message: Message) -> None:
        with self.lock:
            self.version += 1
            job = self._jobs.get(message.get("id", 0))
            try:
                self._take(message, job)
            except Exception as error:  # the caller must still get the end of the job
                log.error("A message could not be handled: %s", kind_of(message), exc_info=error)
                if job is not None and message["type"] in ("result", "error"):
                    self.fail(job, unreadable(job, error))

    def _take(self, message: Message, job: Job | None) -> None:
        """Handle a message of the engine."""
        kind = message["type"]
        if kind == "session":
            self._take_session(message)
        elif job is None:
            return
        elif kind == "progress":
            job.progress(message["text"], message["fraction"], message["seconds_left"])
        elif kind == "piece":
            job.add_piece(message["text"], message.get("column", 0))
        elif kind in ("paused", "unpaused"):
            pauses.hear(job, message)
        elif kind in ("result", "error"):
            self._finish(job, message)

    def _take_session(self, message: Message) -> None:
        """Store the state of the session that the engine reports after each operation."""
        base, slot = message["base"], message.get("slot")
        self.base = rs.ModelFacts.model_validate(base) if base else None
        self.active = [(name, strength) for name, strength in message["active"]]
        known = message.get("status", [])
        self.status = tuple(rs.AdapterStatus.model_validate(each) for each in known)
        self.irregular = message.get("irregular", "")
        self.slot = rs.SlotStatus.model_validate(slot) if slot else None
        self.free_gpu_bytes = message.get("free_gpu_bytes")

    def _finish(self, job: Job, message: Message) -> None:
        """Finish a job; the lock is free and the recipe saved before the result is visible."""
        result, error = outcome_of(job, message)
        if result is not None and self.sides.completes(job, result):
            return
        if error is not None:
            recovery.end_unwritten(job, error, self.runs)
        self.release(job)
        if error is not None:
            self._note_failure(job, error)
            if job is self._replay.job:  # other failures do not stop the restoring
                self._replay.skip_the_rest()
            job.fail(error)
        elif result is not None:
            if job is not self._replay.job:
                self._remember(job.request)
            job.finish(result)
        if job is self._replay.job:
            self._go_on_rebuilding()

    def _go_on_rebuilding(self) -> None:
        try:
            if self._replay.step() is None:
                self._say_it_is_back()
        except WorkerDied as error:
            self.say("bad", str(error))

    def fail(self, job: Job, error: WorkbenchError) -> None:
        """End a job whose process has ended or never started."""
        with self.lock:
            self.release(job)
            self.version += 1
        if not job.done():
            job.fail(error)

    def release(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        if self.current is job:
            self.current = None
        if self.guest is job:
            self.guest = None
        self.sides.ended(job)

    def _remember(self, request: rq.Request) -> None:
        """Update the recipe after an operation; a hot-swap slot is not part of it."""
        recipe = self.recipe.after(request, self.active)
        if self.slot is not None or recipe == self.recipe:
            return
        self.recipe = recipe
        try:
            self.recipe.save(self.settings.session_file)
        except (DiskFull, OSError) as error:
            self.say("bad", f"The session could not be saved for the next start: {error}")

    def _note_failure(self, job: Job, error: WorkbenchError) -> None:
        if job is self._replay.job and job.operation == "set-active":
            self.say("bad", f"The base is restored, but its adapters are not active: {error}")
        elif job.operation in ("train", "resume", "load-model"):
            self.say("bad", str(error))

    def _say_it_is_back(self) -> None:
        if self.notice is not None and self.notice.text.endswith(recovery.REBUILDING):
            self.say("info", self.notice.text.replace(recovery.REBUILDING, "The session is back."))

    def say(self, kind: Literal["info", "good", "bad"], text: str) -> None:
        self.notice = rs.Notice(kind=kind, text=text, time=time.time())
        self.version += 1

    # -- end and restart -------------------------------------------------------------------------

    def _on_worker_exit(self, reason: str) -> None:
        """Handle the end of the worker: report it, save what is left, and restore the session.

        Every caller that waits for the worker gets an error, even if the restoring fails.
        """
        text = f"The model process ended: {reason}."
        with self.lock:
            if self._closed:
                return
            lost = [job for job in self._jobs.values() if self._in_worker(job)]
            try:
                text = self._begin_again(lost, reason)
            except Exception as error:
                log.error("The session could not be restored.", exc_info=error)
                self.say("bad", f"{text} {recovery.TRY_AGAIN}")
            for each in lost:
                self.release(each)
        for each in lost:
            each.fail(WorkerDied(text.replace(recovery.REBUILDING, recovery.BY_ITSELF)))

    def _in_worker(self, job: Job) -> bool:
        return not self.sides.holds(job)

    def _begin_again(self, lost: list[Job], reason: str) -> str:
        """Drop the ended worker, start to restore its session, and return the message about it."""
        asked = next((job for job in lost if job.stops > 1), None)
        job = self.current or asked
        was_replaying = job is not None and job is self._replay.job
        preparing = job is not None and job.operation == "prepare-hotswap"
        had_slot = self.slot is not None or preparing
        self._runtime, self.base, self.active = None, None, []
        self.status, self.irregular, self.slot = (), "", None
        if was_replaying:
            self.recipe = Recipe()  # the recipe itself ends the worker: do not repeat it
        said = recovery.death_text(job, reason, self.runs)
        text = f"{said} {recovery.what_follows(self.recipe, was_replaying)}".strip()
        if had_slot:
            text = text.replace(recovery.REBUILDING, f"{recovery.SLOT_LOST} {recovery.REBUILDING}")
        for each in lost:
            self.release(each)
        self._replay.give_up()
        self.say("bad", text)
        try:
            self._replay.start(self.recipe)
        except WorkerDied as error:
            text = f"{said} {error}"
            self.say("bad", text)
        return text

    def kill_later(self, job: Job) -> None:
        """Kill the worker if this job still runs after a grace period: then it hangs."""
        timer = threading.Timer(ABORT_GRACE_S, self._kill_if_running, [job])
        timer.daemon = True
        timer.start()

    def _kill_if_running(self, job: Job) -> None:
        with self.lock:
            if job.id in self._jobs and self._in_worker(job) and self._runtime is not None:
                self._runtime.kill()
