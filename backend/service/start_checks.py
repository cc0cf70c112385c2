"""Checks before an operation starts, and the creation of a new run's folder.

The service calls these while it holds the engine's lock. Nothing here starts an operation.
"""

from contextlib import suppress
from pathlib import Path

from backend import merge_requirements
from backend import requests as rq
from backend.errors import Busy, InvalidRequest, NotFound, Unsupported
from backend.files.destinations import require_destination
from backend.library import Library
from backend.permissions import Caller
from backend.runs import adjustments
from backend.runs.run_store import Run, Runs
from backend.runs.training_queue import TrainingQueue
from backend.service.engine_client import EngineLink
from backend.settings import Settings

_WITHOUT_BASE = (rq.LoadModel, rq.DeleteAdapter, rq.RestoreAdapter, rq.RenameAdapter)


class Starts:
    """Checks requests against a session, its runs, its library and its queue."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineLink,
        runs: Runs,
        library: Library,
        queue: TrainingQueue,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.runs = runs
        self.library = library
        self.queue = queue

    def prepare(self, request: rq.Request) -> str | None:
        """Return the id of the request's run; raises if the operation is not possible."""
        if isinstance(request, rq.Train | rq.Resume):
            self.require_no_slot()
        if isinstance(request, rq.Train):
            return self.new_run(request).id
        if isinstance(request, rq.Resume):
            return self._resumable(request).id
        if isinstance(request, rq.DeleteAdapter | rq.RenameAdapter):
            self._require_untrained(request.name)
        if not isinstance(request, _WITHOUT_BASE):
            self.engine.require_base()
        return None

    def processes(self, request: rq.Request) -> int:
        """Return how many processes a request's run has; 1 if the request is not a run."""
        if isinstance(request, rq.Resume):
            return self.runs.get(request.run_id).request.train.processes
        return request.processes if isinstance(request, rq.Train) else 1

    def require_own_machine(self, caller: Caller) -> None:
        """Raise Unsupported if several processes are requested in a demo."""
        if self.settings.demo and caller == "page":
            raise Unsupported(
                "This shared demo trains in one process.",
                cure="Duplicate this Space or run the app on your own machine for more.",
            )

    def require_no_slot(self) -> None:
        """Raise Unsupported while a prepared slot holds the model."""
        if self.engine.slot is not None:
            raise Unsupported(
                "The hot-swap slot is using the model.", cure="Leave the hot-swap slot first."
            )

    def check_destination(self, destination: str) -> None:
        """Raise InvalidRequest if a folder may not be written to."""
        base = self.engine.base
        require_destination(Path(destination), self.settings, Path(base.path) if base else None)

    def check_merge(self, request: rq.Merge) -> None:
        """Raise what prevents a merge."""
        self.require_no_slot()
        wanted = Path(request.destination).resolve()
        with self.engine.lock:
            for job in self.engine.sides.shown():
                other = job.request
                if isinstance(other, rq.Merge) and Path(other.destination).resolve() == wanted:
                    raise Busy(
                        f"{job.title} already writes to {wanted}.",
                        cure="Wait for it, stop it, or choose another folder.",
                    )
        merge_requirements.check(request, self.engine.require_base(), self.library)

    def new_run(self, train: rq.Train, *, launched: bool = False) -> Run:
        """Create the folder of a new run; raises InvalidRequest or NotFound."""
        base, source = self.engine.require_base(), self.engine.recipe.base
        self.check_new(train)
        train = train.with_rate(base.parameters)
        if train.start_from is not None:
            start = self.library.get(train.start_from)
            settings = {**self.library.lora_settings(start.id), "targets": list(start.targets)}
            lora = train.adapter.model_copy(update=settings)  # instead of the form's values
            train = train.model_copy(update={"adapter": lora})
        return self.runs.create(
            train,
            base=(
                source.source if source else "",
                base.name,
                base.fingerprint,
            ),
            adapter_id=self.library.new_id({each.adapter_id for each in self.runs.summaries()}),
            colour=self.library.next_colour(),
            loaded=source,
            launched=launched,
        )

    def check_new(self, train: rq.Train) -> None:
        """Raise what prevents a new training run with this request."""
        self.library.require_free(train.name, self.reserved_names())
        if train.start_from is not None:
            self.library.get(train.start_from)

    def reserved_names(self) -> set[str]:
        """Return the names of adapters that runs and queue will create."""
        return self.runs.reserved_names() | self.queue.names()

    def _require_untrained(self, name: str) -> None:
        """Raise Busy if another app is still training the run that writes this adapter."""
        run_id = self.library.get(name).run_id
        if run_id:
            with suppress(NotFound, InvalidRequest):  # the adapter may have outlived its run
                self.runs.get(run_id).require_untrained()

    def _resumable(self, request: rq.Resume) -> Run:
        base, run = self.engine.require_base(), self.runs.get(request.run_id)
        run.require_untrained()
        train, finished = run.request.train, run.known_status().state == "finished"
        if finished and not request.extra_epochs:
            raise InvalidRequest(
                f"The run {train.name!r} is finished, so it cannot be resumed.",
                cure="Extend it by some epochs instead.",
            )
        if request.extra_epochs and not finished:
            raise InvalidRequest(
                f"The run {train.name!r} is not finished, so it cannot be extended.",
                cure="Resume it first, to its end.",
            )
        if request.extra_epochs and (reason := run.not_extendable()):
            raise Unsupported(
                f"The run {train.name!r} cannot be extended: {reason}.",
                cure="Start a new run from its adapter (Start from, under Advanced).",
            )
        adjustments.read(run.folder)  # raises Damaged before anything starts
        if run.latest_checkpoint() is None:
            raise NotFound("This run has no checkpoint to resume from.", cure="Start it again.")
        if run.request.base_fingerprint != base.fingerprint:
            raise InvalidRequest(
                f"This run belongs to the base {run.request.base_name!r}, "
                f"but {base.name!r} is loaded.",
                cure=f"Load {run.request.base_name!r} first.",
            )
        self.library.require_place(run.request.adapter_id, run.id)
        if finished and self.library.by_id(run.request.adapter_id) is None:
            self.library.require_free(train.name, self.reserved_names())
        return run
