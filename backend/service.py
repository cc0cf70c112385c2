"""The facade: one session, its jobs, its runs and its adapters. Everything else talks to this.

The service knows no model and imports no torch. It validates, keeps the one model lock, hands
operations to the engine, remembers the session's recipe and rebuilds the session from it when the
engine's process dies.
"""

import hashlib
import shutil
import threading
import time
from bisect import bisect_right
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

import psutil

from backend import requests as rq
from backend import results as rs
from backend.access import check_caller
from backend.errors import (
    Busy,
    DiskFull,
    InvalidRequest,
    NotFound,
    Stopped,
    WorkbenchError,
    WorkerDied,
    from_dict,
)
from backend.events import Curve, Event, curve
from backend.jobs import Job
from backend.library import Library, new_adapter_id
from backend.operations import OPERATIONS
from backend.recipe import Recipe
from backend.runs import Run, Runs
from backend.runtime import Message, Runtime, WorkerProcess, start_runtime
from backend.settings import Settings

ABORT_GRACE_S = 5.0
CLOSE_GRACE_S = 20.0
MEMORY_EVERY_S = 2.0
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Service:
    """One workbench session. Use it as a context manager, or call `close` at the end."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.settings.workspace.mkdir(parents=True, exist_ok=True)
        self.library = Library(self.settings.adapters_dir)
        self.runs = Runs(self.settings.runs_dir)
        self._lock = threading.RLock()
        self._jobs: dict[int, Job] = {}
        self._side_runtimes: dict[int, Runtime] = {}
        self._current: Job | None = None
        self._next_id = 1
        self._version = 0
        self._base: rs.ModelFacts | None = None
        self._active: rq.Variant = []
        self._recipe = Recipe()
        self._replaying: list[rq.Request] = []
        self._replay_job: Job | None = None
        self._notice: rs.Notice | None = None
        self._memory = (0.0, 0)
        self._last_read: tuple[list[rs.RunSummary], list[rs.AdapterInfo]] = ([], [])
        self._closed = False
        self.runs.sweep("The app ended while this run was training.")
        self._runtime: Runtime | None = self._start_runtime()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- operations ------------------------------------------------------------------------------

    def start(self, request: rq.Request, *, caller: Literal["local", "page"] = "local") -> Job:
        """Start an operation and return its job at once.

        Raises Busy where another model job runs, and InvalidRequest or NotFound where the request
        cannot work; everything later comes out of `job.result()`.
        """
        if caller == "page":
            check_caller(request, self.settings)
        if isinstance(request, get_args(rq.SideRequest)):
            return self._start_side(request)
        with self._lock:
            self._require_free()
            job, message = self._prepare(request)
            self._current = job
            self._send(message)
        return job

    def chat(
        self, request: rq.Chat, *, caller: Literal["local", "page"] = "local"
    ) -> Generator[str, None, None]:
        """Start an answer and yield it piece by piece; closing the iterator stops it."""
        pieces = self._stream(self.start(request, caller=caller))
        next(pieces)  # a generator that has not begun would not notice that it is closed
        return pieces

    def stop(self) -> None:
        """Ask the running job to end well; asked again, it ends at once. Idle: does nothing."""
        with self._lock:
            job = self._current
            if job is None or self._runtime is None:
                return
            job.stops += 1
            self._version += 1
            self._runtime.send({"control": "stop" if job.stops == 1 else "abort", "id": job.id})
        if job.stops == 2:
            timer = threading.Timer(ABORT_GRACE_S, self._kill_if_running, [job])
            timer.daemon = True
            timer.start()

    def restore(self) -> Job | None:
        """Build the saved session again, or load the starter model where none was saved."""
        recipe = Recipe.load(self._recipe_file)
        with self._lock:
            self._recipe = recipe if recipe.base else Recipe(base=rq.LoadModel(source="starter"))
            return self._replay()

    def close(self) -> None:
        """End the engine: training is stopped and saved first, other jobs end with Stopped."""
        self._end_training_well()
        with self._lock:
            self._closed = True
            runtime, self._runtime = self._runtime, None
            jobs, sides = list(self._jobs.values()), list(self._side_runtimes.values())
        for engine in (*sides, *([runtime] if runtime else [])):
            engine.close()
        for job in jobs:
            if not job.done():
                job.fail(Stopped("The workbench was closed."))
        self.runs.sweep("The app was closed while this run was training.")

    def _end_training_well(self) -> None:
        with self._lock:
            job = self._current
            training = job is not None and job.run_id is not None
        if job is not None and training:
            if job.stops == 0:
                self.stop()
            job.wait(CLOSE_GRACE_S)

    # -- looking ---------------------------------------------------------------------------------

    def snapshot(self) -> rs.Snapshot:
        """Return the state of everything; the same version means nothing changed."""
        runs = self.runs.summaries()
        adapters = self.library.all()
        with self._lock:
            self._sample_memory()
            if (runs, adapters) != self._last_read:
                self._last_read, self._version = (runs, adapters), self._version + 1
            return rs.Snapshot(
                version=self._version,
                phase=self._phase(),
                base=self._base,
                active=self._active,
                adapters=adapters,
                runs=runs,
                job=self._current.info() if self._current else None,
                notice=self._notice,
                memory_bytes=self._memory[1],
                memory_total_bytes=psutil.virtual_memory().total,
            )

    def events(self, run_id: str, since: int = 0) -> list[Event]:
        """Return a run's events with a `seq` above `since`."""
        with self._lock:
            events = self.runs.events(run_id).poll()
        return events[bisect_right(events, since, key=lambda event: event.seq) :]

    def curve(self, run_id: str) -> Curve:
        """Return a run's points for its chart."""
        return curve(self.events(run_id))

    def add_upload(self, path: Path, name: str) -> Path:
        """Copy an uploaded data file into the workspace under its content's hash."""
        suffix = Path(name).suffix.lower()
        if suffix not in DATA_SUFFIXES:
            raise InvalidRequest(
                f"{Path(name).name} is not a data file.",
                cure=f"Use one of {', '.join(DATA_SUFFIXES)}.",
            )
        if path.stat().st_size > self.settings.max_upload_bytes:
            limit = self.settings.max_upload_bytes // 1024**2
            raise InvalidRequest(f"{Path(name).name} is larger than {limit} MB.")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(name).stem)[:60]
        target = self.settings.uploads_dir / f"{stem}-{digest}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(path, target)
        return target

    # -- starting --------------------------------------------------------------------------------

    def _require_free(self) -> None:
        if self._closed:
            raise Stopped("The workbench is closed.")
        if self._current is not None:
            raise Busy(f"{self._current.title} is still going on.", cure="Wait for it or stop it.")

    def _prepare(self, request: rq.Request) -> tuple[Job, Message]:
        """Make the job and the engine's message; what cannot work raises, and changes nothing."""
        message: Message = {"op": rq.name_of(request), "request": request.model_dump(mode="json")}
        run: Run | None = None
        if isinstance(request, rq.Train):
            run = self._new_run(request)
        elif isinstance(request, rq.Resume):
            run = self._resumable(request)
        elif not isinstance(request, rq.LoadModel):
            self._require_base()
        job = self._new_job(request)
        if run is not None:
            job.run_id = message["run_id"] = run.id
        return job, {**message, "id": job.id}

    def _new_job(self, request: rq.Request) -> Job:
        job = Job(
            self._next_id, request, OPERATIONS[type(request)].title(request), rq.name_of(request)
        )
        self._next_id += 1
        self._version += 1
        self._jobs[job.id] = job
        return job

    def _require_base(self) -> rs.ModelFacts:
        if self._base is None:
            raise NotFound("No base model is loaded.", cure="Load one first: the starter is quick.")
        return self._base

    def _new_run(self, train: rq.Train) -> Run:
        base = self._require_base()
        live = {run.name for run in self.runs.summaries() if run.state in ("running", "queued")}
        self.library.require_free(train.name, live)
        if train.start_from is not None:
            self.library.get(train.start_from)
        return self.runs.create(
            train,
            base=(
                self._recipe.base.source if self._recipe.base else "",
                base.name,
                base.fingerprint,
            ),
            adapter_id=new_adapter_id(),
            colour=self.library.next_colour(),
        )

    def _resumable(self, request: rq.Resume) -> Run:
        base, run = self._require_base(), self.runs.get(request.run_id)
        if run.status().state == "finished":
            raise InvalidRequest(
                f"The run {run.request.train.name!r} is finished: nothing is left to resume."
            )
        if run.latest_checkpoint() is None:
            raise NotFound("This run has no checkpoint to go on from.", cure="Start it again.")
        if run.request.base_fingerprint != base.fingerprint:
            raise InvalidRequest(
                f"This run belongs to the base {run.request.base_name!r}, "
                f"but {base.name!r} is loaded.",
                cure=f"Load {run.request.base_name!r} first.",
            )
        return run

    def _start_side(self, request: rq.Request) -> Job:
        """Run what never changes the session: in the worker while it idles, else beside it."""
        with self._lock:
            if self._closed:
                raise Stopped("The workbench is closed.")
            job = self._new_job(request)
            message: Message = {
                "id": job.id,
                "op": job.operation,
                "request": request.model_dump(mode="json"),
                "base_path": self._base.path if self._base else None,
            }
            if self._current is None or self.settings.runtime == "inline":
                self._send(message)
                return job
        side = WorkerProcess(
            self.settings,
            self._on_side_message,
            lambda reason: self._on_side_exit(job, reason),
            log_file=self.settings.workspace / "side.log",
        )
        with self._lock:
            self._side_runtimes[job.id] = side
        side.send(message)
        return job

    def _stream(self, job: Job) -> Generator[str, None, None]:
        try:
            yield ""  # taken by `chat`
            yield from job.pieces()
        finally:
            if not job.done():
                self._stop_job(job)

    def _stop_job(self, job: Job) -> None:
        with self._lock:
            if self._current is job:
                self.stop()
        job.wait(CLOSE_GRACE_S)  # until then the model is not free for the next question

    # -- the engine's side -----------------------------------------------------------------------

    @property
    def _recipe_file(self) -> Path:
        return self.settings.workspace / "session.json"

    def _start_runtime(self) -> Runtime:
        return start_runtime(self.settings, self._on_message, self._on_worker_exit)

    def _send(self, message: Message) -> None:
        if self._runtime is None:
            self._runtime = self._start_runtime()
        self._runtime.send(message)

    def _on_message(self, message: Message) -> None:
        with self._lock:
            self._version += 1
            job = self._jobs.get(message.get("id", 0))
            kind = message["type"]
            if kind == "session":
                base = message["base"]
                self._base = rs.ModelFacts.model_validate(base) if base else None
                self._active = [(name, strength) for name, strength in message["active"]]
            elif job is None:
                return
            elif kind == "progress":
                job.progress(message["text"], message["fraction"], message["seconds_left"])
            elif kind == "piece":
                job.add_piece(message["text"])
            elif kind in ("result", "error"):
                self._finish(job, message)

    def _on_side_message(self, message: Message) -> None:
        """Hear the second process: it has a session of its own, which is not this one."""
        if message["type"] != "session":
            self._on_message(message)

    def _finish(self, job: Job, message: Message) -> None:
        """Close a job; the lock is free and the recipe saved before anybody hears of the result."""
        self._release(job)
        if message["type"] == "error":
            error = from_dict(message["error"])
            self._note_failure(job, error)
            self._replaying.clear()
            job.fail(error)
        else:
            if job is not self._replay_job:
                self._remember(job.request)
            job.finish(OPERATIONS[type(job.request)].result.model_validate(message["result"]))
        if job is self._replay_job:
            self._replay_step()

    def _release(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        if self._current is job:
            self._current = None
        side = self._side_runtimes.pop(job.id, None)
        if side is not None:
            threading.Thread(target=side.close, name="side-close", daemon=True).start()

    def _remember(self, request: rq.Request) -> None:
        """Keep the recipe in step with the session."""
        if isinstance(request, rq.LoadModel):
            self._recipe = Recipe(base=request, active=self._active)
        elif isinstance(request, rq.UnloadModel):
            self._recipe = Recipe()
        elif isinstance(request, rq.SetActive):
            self._recipe = self._recipe.model_copy(update={"active": self._active})
        else:
            return
        try:
            self._recipe.save(self._recipe_file)
        except DiskFull as error:
            self._say("bad", str(error))

    def _note_failure(self, job: Job, error: WorkbenchError) -> None:
        if job.operation in ("train", "resume", "load-model"):
            self._say("bad", str(error))

    def _say(self, kind: Literal["info", "good", "bad"], text: str) -> None:
        self._notice = rs.Notice(kind=kind, text=text, time=time.time())
        self._version += 1

    # -- death and return ------------------------------------------------------------------------

    def _on_worker_exit(self, reason: str) -> None:
        """The worker died: say so, keep what can be kept, and bring the session back."""
        with self._lock:
            if self._closed:
                return
            job = self._current
            was_replaying = job is not None and job is self._replay_job
            self._runtime, self._base, self._active = None, None, []
            lost = [self._jobs[i] for i in list(self._jobs) if i not in self._side_runtimes]
            if was_replaying:
                self._recipe = Recipe()  # it dies of its own recipe: do not try for ever
            text = f"{self._death_text(job, reason)} {self._what_follows(was_replaying)}".strip()
            for each in lost:
                self._release(each)
            self._replaying, self._replay_job = [], None
            self._say("bad", text)
            self._replay()
        for each in lost:
            each.fail(WorkerDied(text))

    def _death_text(self, job: Job | None, reason: str) -> str:
        if job is not None and job.run_id is not None:
            run = self.runs.get(job.run_id)
            if job.stops >= 2:
                run.interrupt("Ended at once, as asked.", state="stopped")
                return f"{job.title} was ended at once."
            run.interrupt(f"The model process is gone: {reason}.")
            checkpoint = run.latest_checkpoint()
            step = checkpoint.name.rsplit("-", 1)[1] if checkpoint else None
            advice = f"Resume goes on from step {step}." if step else "It had no checkpoint yet."
            return f"{job.title} broke off: the model process is gone, {reason}. {advice}"
        during = f" during: {job.title}" if job else ""
        return f"The model process is gone{during}: {reason}."

    def _what_follows(self, was_replaying: bool) -> str:
        if was_replaying:
            return "It died while the session was being rebuilt, so that is given up. Load a base."
        return "The session is being rebuilt." if self._recipe.base is not None else ""

    def _replay(self) -> Job | None:
        """Start rebuilding the session from its recipe; returns the job of its base."""
        if self._recipe.base is None:
            return None
        self._replaying = [self._recipe.base]
        if self._recipe.active:
            self._replaying.append(rq.SetActive(adapters=self._recipe.active))
        return self._replay_step()

    def _replay_step(self) -> Job | None:
        """Start the next step of the recipe, if one is left."""
        self._replay_job = None
        if not self._replaying:
            return None
        request = self._replaying.pop(0)
        job = self._new_job(request)
        self._current = self._replay_job = job
        self._send({"op": job.operation, "request": request.model_dump(mode="json"), "id": job.id})
        return job

    def _on_side_exit(self, job: Job, reason: str) -> None:
        with self._lock:
            self._release(job)
        if not job.done():
            job.fail(WorkerDied(f"{job.title} broke off: {reason}."))

    def _kill_if_running(self, job: Job) -> None:
        with self._lock:
            if self._current is job and self._runtime is not None:
                self._runtime.kill()

    # -- small things ----------------------------------------------------------------------------

    def _phase(self) -> rs.Phase:
        phase = OPERATIONS[type(self._current.request)].phase if self._current else None
        if phase is not None:
            return phase
        if self._runtime is None:
            return "down"
        return "ready" if self._base is not None else "empty"

    def _sample_memory(self) -> None:
        """Read the engine's memory now and then; a small change is not worth a new version."""
        taken, known = self._memory
        if self._runtime is None or time.monotonic() - taken < MEMORY_EVERY_S:
            return
        used = self._runtime.memory_bytes()
        if abs(used - known) > 0.02 * max(known, 1):
            known, self._version = used, self._version + 1
        self._memory = (time.monotonic(), known)
