"""The facade: one session with its jobs, runs and adapters. Page, API and command line use it.

The service knows no model and imports no torch. It checks requests and passes them to the engine
through `EngineLink`, which holds the only model lock and outlives the engine's process.
"""

from bisect import bisect_right
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, get_args

import psutil

from backend import merge_requirements
from backend import requests as rq
from backend import results as rs
from backend.compile_times import CompileTimes
from backend.errors import Busy, DiskFull, NotFound
from backend.files import damaged_files
from backend.files.atomic_files import write_text
from backend.files.uploads import ADAPTER_SUFFIXES, keep_upload
from backend.library import Library
from backend.permissions import Caller, check_caller, resolved
from backend.runs import launch_commands
from backend.runs.events import Curve, Event, curve
from backend.runs.plain_script import script_of
from backend.runs.run_commands import commands_of
from backend.runs.run_store import Runs
from backend.runs.training_queue import TrainingQueue
from backend.service import external_run
from backend.service.engine_client import EngineLink
from backend.service.jobs import Job
from backend.service.run_control import RunControl
from backend.service.start_checks import Starts
from backend.service.waiting_runs import WaitingRuns
from backend.service.worker_process import StartRuntime
from backend.service.workspace_transfer import WorkspaceTransfer
from backend.settings import Settings
from backend.workspace.check import require_usable
from backend.workspace.moves import undo_unfinished
from backend.workspace.versions import open_workspace

Piece = TypeVar("Piece")


class Service(WaitingRuns, WorkspaceTransfer):
    """One workbench session. Use it as a context manager, or call `close` at the end.

    `start_engine` replaces the engine that the settings name.
    """

    def __init__(
        self, settings: Settings | None = None, *, start_engine: StartRuntime | None = None
    ) -> None:
        self.settings = settings or Settings()
        require_usable(self.settings)
        opening = open_workspace(self.settings.workspace)
        undo_unfinished(self.settings.workspace)
        self.queue = TrainingQueue(self.settings.queue_file)
        self.opening = [*opening, *filter(None, [self.queue.problem])]
        """Sentences about changes to a workspace of an older format, and about damaged files."""
        self.library = Library(self.settings.adapters_dir)
        self.runs = Runs(self.settings.runs_dir)
        self.runs.sweep("The app ended while this run was training.")
        self.engine = EngineLink(self.settings, self.runs, start_engine)
        if self.opening:
            self.engine.say("bad" if self.queue.problem else "info", " ".join(self.opening))
        self.run_control = RunControl(self.engine)
        self.starts = Starts(self.settings, self.engine, self.runs, self.library, self.queue)
        self._last_read: tuple[object, ...] = ([], [], 0, ())
        self._deleted_before = self.library.trashed()

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

    def start(self, request: rq.Request, *, caller: Caller = "local") -> Job:
        """Start an operation and return its job at once.

        Raises Busy if another model job is running, and InvalidRequest or NotFound if the request
        is not possible. Later errors are raised by `job.result()`.
        """
        check_caller(request, self.settings, caller)
        request = resolved(request, caller)
        if isinstance(request, rq.Merge | rq.SaveAdapter | rq.ExportRun):
            self.starts.check_destination(request.destination)
        if isinstance(request, rq.Merge):
            self.starts.check_merge(request)
        if isinstance(request, rq.ExportRun | rq.Resume):  # a run may come from another machine
            check_caller(self.runs.get(request.run_id).request.train, self.settings, caller)
        if isinstance(request, get_args(rq.SideRequest)):
            return self.engine.sides.begin(request)
        if self.starts.processes(request) > 1:
            return self._launch(request, caller)
        with self.engine.lock:
            self.engine.require_free(request)
            run_id = self.starts.prepare(request)
            self.engine.notice = None  # the user has seen it
            job = self.engine.begin(request, run_id=run_id, owner=caller == "owner")
            if isinstance(request, rq.Resume):
                doing = "Extending" if request.extra_epochs else "Resuming"
                job.title = f"{doing} {self.runs.get(request.run_id).request.train.name}"
            return job

    def chat(self, request: rq.Chat, *, caller: Caller = "local") -> Generator[str, None, None]:
        """Start an answer and yield it piece by piece; closing the iterator stops it."""
        job = self.start(request, caller=caller)
        pieces = self._stream(job, job.pieces())
        next(pieces)  # closing a generator that has not started has no effect
        return pieces  # type: ignore[return-value]

    def side_by_side(
        self, request: rq.SideBySide, *, caller: Caller = "local"
    ) -> Generator[tuple[int, str], None, None]:
        """Start several answers and yield (column, text) piece by piece; closing stops them all."""
        job = self.start(request, caller=caller)
        pieces = self._stream(job, job.column_pieces())
        next(pieces)
        return pieces  # type: ignore[return-value]

    def stop(self) -> None:
        """Ask the running job to stop; a second call stops it now. Does nothing if idle."""
        self.engine.stop()

    def stop_answer(self, job: Job) -> None:
        """Ask this job to stop if it is still running, also during a paused run."""
        if not job.done():
            self.engine.stop_job(job, wait=False)

    def pause(self) -> None:
        """Pause the current run after its step; the model can answer during the pause.

        Chat, SideBySide, Compare, Score, NextToken and SaveAdapter work then, also with the
        half-trained adapter under its name. Does nothing if there is no run.
        """
        self.run_control.pause()

    def resume(self) -> None:
        """Resume a paused run; the result is the same, bit for bit, as without the pause."""
        self.run_control.resume()

    def save_now(self) -> None:
        """Let the current run write a checkpoint after its step; does nothing without a run."""
        self.run_control.save_now()

    def adjust(self, request: rq.Adjust) -> None:
        """Change settings of the current run from its next step; a resumed run keeps them.

        The schedule continues from the new learning rate, to zero at the last step. Raises NotFound
        if there is no run, and InvalidRequest if the new last step is already past.
        """
        self.run_control.adjust(request)

    def settings_now(self, run_id: str) -> rq.Adjust:
        """Return the current values of what `adjust` can change; NotFound for unknown runs."""
        with self.engine.lock:
            return self.run_control.settings_now(run_id)

    def stop_side(self, job_id: int) -> None:
        """Stop a background job, such as a merge; a second call stops it now."""
        self.engine.sides.stop(job_id)

    def restore(self) -> Job | None:
        """Restore the saved session, or load the starter model if none was saved.

        Raises WorkerDied if no model process can be started; it can be called again.
        """
        return self.engine.restore()

    def close(self) -> None:
        """Close the engine: training is stopped and saved first, other jobs end with Stopped.

        Adapters deleted while this service ran are then removed permanently.
        """
        if self._queue_runner is not None:
            self._queue_runner.close()
        self.engine.close()
        self.library.purge(self.library.trashed() - self._deleted_before)
        self.runs.sweep("The app was closed while this run was training.", own=True)

    def compile_seconds(self, layers: int) -> float:
        """Return how many seconds compiling a slot takes here for a base with this many layers."""
        return CompileTimes(self.settings.compile_times_file).expected(layers)

    def prepare_launch(
        self, train: rq.Train, machines: int = 1, *, caller: Caller = "local"
    ) -> rs.Launch:
        """Create the folder of a run that will be launched by hand; return the command to type.

        The run waits for its launch and is then shown like any other. Every machine must see the
        workspace under the same path. Raises the same errors as `start`.
        """
        check_caller(train, self.settings, caller)
        train = resolved(train, caller)
        self.starts.require_own_machine(caller)
        launch_commands.require_shares(train.processes, machines)
        with self.engine.lock:
            run = self.starts.new_run(train, launched=True)
        launch = launch_commands.describe(run.folder.absolute(), train.processes, machines)
        try:
            write_text(run.folder / "launch.json", launch.model_dump_json(indent=1))
        except DiskFull:
            self.runs.delete(run.id)  # it could not be launched
            raise
        return launch

    def launch_of(self, run_id: str) -> rs.Launch:
        """Return the command that starts a run waiting to be launched; raises NotFound."""
        file = self.runs.get(run_id).folder / "launch.json"
        if not file.exists():
            raise NotFound(f"The run {run_id!r} has no launch command.")
        return damaged_files.read(file, rs.Launch.model_validate_json)

    def discard(self, run_id: str) -> None:
        """Delete a run that waits to be launched; raises Busy if it has started."""
        status = self.runs.get(run_id).status()
        if not (status.launched and status.state == "queued"):
            raise Busy("This run is no longer waiting.", cure="Stop it instead.")
        self.runs.delete(run_id)

    # -- reading ---------------------------------------------------------------------------------

    def snapshot(self) -> rs.Snapshot:
        """Return the whole state; if the version is the same, nothing has changed."""
        runs = self.runs.summaries()
        external_run.adopt(self.engine, self.runs, runs)
        adapters, deleted = self.library.all(), self.library.deleted()
        damaged = tuple(self.library.damaged())
        engine = self.engine
        with engine.lock:
            engine.sides.note_time()
            memory = engine.sample_memory()
            if (read := (runs, adapters, len(deleted), damaged)) != self._last_read:
                self._last_read = read
                engine.version += 1
            return rs.Snapshot(
                version=engine.version,
                phase=engine.phase(),
                base=engine.base,
                active=engine.active,
                adapters=adapters,
                runs=runs,
                job=engine.current_info(),
                notice=engine.notice,
                status=engine.status,
                irregular=engine.irregular,
                deleted=tuple(deleted),
                damaged=damaged,
                side_jobs=tuple(job.info() for job in engine.sides.shown()),
                queue=self.queue.describe(engine.base),
                slot=engine.slot,
                memory_bytes=memory,
                memory_total_bytes=psutil.virtual_memory().total,
            )

    def events(self, run_id: str, since: int = 0) -> list[Event]:
        """Return a run's events with a `seq` above `since`."""
        with self.engine.lock:
            events = self.runs.events(run_id).poll()
        return events[bisect_right(events, since, key=lambda event: event.seq) :]

    def curve(self, run_id: str) -> Curve:
        """Return the points of a run's chart."""
        return curve(self.events(run_id))

    def merge_needs(self, request: rq.Merge, *, caller: Caller = "local") -> rs.MergeNeeds:
        """Return what a merge needs; raises what prevents it, except a lack of disk space."""
        if caller == "page":
            check_caller(request, self.settings)
        base = self.engine.require_base()
        self.starts.check_destination(request.destination)
        merge_requirements.check_variant(request.variant, base, self.library)
        merge_requirements.check_destination(
            Path(request.destination).expanduser(), Path(base.path)
        )
        return merge_requirements.measure(request, base, self.library)

    def run_commands(self, run_id: str) -> rs.RunCommands:
        """Return the commands that repeat a run; raises NotFound."""
        run = self.runs.get(run_id)
        return commands_of(run, self.settings, free=self.free_name(run.request.train.name))

    def run_script(self, run_id: str) -> str:
        """Return a run as a plain PEFT script; raises Unsupported if that is not possible."""
        run, base = self.runs.get(run_id), self.engine.base
        same = base is not None and base.fingerprint == run.request.base_fingerprint
        return script_of(run, self.library, base.path if base is not None and same else "")

    # -- tidying ---------------------------------------------------------------------------------

    def annotate(self, run_id: str, text: str) -> None:
        """Save a note about a run in its folder; raises InvalidRequest or NotFound."""
        self.runs.get(run_id).write_note(text)

    def leave_data_question(self, run_id: str) -> None:
        """Leave a run whose data has changed as it is; raises Busy or NotFound."""
        self.runs.get(run_id).drop_question()

    def delete_run(self, run_id: str) -> None:
        """Delete a run's folder permanently; its adapter stays. Raises Busy or NotFound."""
        with self.engine.lock:
            if any(job.run_id == run_id for job in self.engine.jobs()):
                name = self.runs.get(run_id).request.train.name
                raise Busy(f"{name} is being trained.", cure="Stop it first.")
            self.runs.delete(run_id)

    def delete_damaged(self, adapter_id: str) -> None:
        """Move an adapter whose side-car cannot be read to the trash; raises NotFound."""
        self.library.discard_damaged(adapter_id)

    def add_upload(self, path: Path, name: str) -> Path:
        """Copy an uploaded data file into the workspace; raises InvalidRequest."""
        return keep_upload(path, name, self.settings)

    def add_adapter_upload(self, path: Path, name: str) -> Path:
        """Copy an uploaded zip file with an adapter into the workspace; raises InvalidRequest."""
        return keep_upload(path, name, self.settings, ADAPTER_SUFFIXES)

    def pack_adapter(self, name: str) -> Path:
        """Write an adapter as a zip for download and return the file; raises NotFound."""
        return self.library.pack(self.library.get(name).id, self.settings.exports_dir)

    def free_name(self, wanted: str) -> str:
        """Return a name that is not taken or reserved: the wanted one if possible."""
        return self.library.free_name(wanted, self.starts.reserved_names())

    def _launch(self, request: rq.Request, caller: Caller) -> Job:
        """Start a run in separate processes; the session's model stays free."""
        self.starts.require_own_machine(caller)
        with self.engine.lock:
            if going := [job for job in self.engine.jobs() if job.run_id is not None]:
                raise Busy(f"{going[0].title} is still going on.", cure="Wait for it or stop it.")
            launch_commands.require_places(
                self.starts.processes(request), self.engine.require_base()
            )
            run_id = self.starts.prepare(request)
            assert run_id is not None
            job = external_run.begin(self.engine, request, self.runs.get(run_id))
            job.title = f"Training {self.runs.get(run_id).request.train.name}"
            return job

    def _stream(self, job: Job, pieces: Iterator[Piece]) -> Generator[Piece | None, None, None]:
        try:
            yield None  # taken by the caller
            yield from pieces
        finally:
            if not job.done():
                self.engine.stop_job(job)
