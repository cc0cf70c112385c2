"""What can be said to a run while it goes on: pause, go on, save now, other settings.

Words travel to the engine at once and take effect at the end of the step that is being computed.
Where no run goes on, nothing happens, except that there is nothing to adjust.
"""

from collections.abc import Callable

from backend.errors import InvalidRequest, NotFound
from backend.requests import Adjust
from backend.runs import adjustments
from backend.service.engine_client import EngineLink
from backend.service.jobs import Job


class RunControl:
    """The wheel of the run that goes on, if one does."""

    def __init__(self, engine: EngineLink) -> None:
        self._engine = engine

    def pause(self) -> None:
        """Let the run hold still after this step; its memory is kept and its model answers."""

        def ask(job: Job) -> None:
            job.wish = "" if job.paused else "pause"
            self._engine.tell(job, "pause")

        self._with_run(ask)

    def resume(self) -> None:
        """Let a paused run go on, exactly as if it had never paused."""

        def ask(job: Job) -> None:
            job.wish = "resume"  # also where the engine is just about to say that it paused
            self._engine.tell(job, "resume")

        self._with_run(ask)

    def save_now(self) -> None:
        """Let the run write a checkpoint after this step, beside its usual ones.

        A run with processes of its own hears it, too, where no other one goes on.
        """
        engine = self._engine
        with engine.lock:
            going = [engine.current, *engine.sides.shown()]
            run = next((job for job in going if job and job.run_id and not job.stops), None)
            if run is not None:
                engine.tell(run, "save")

    def adjust(self, request: Adjust) -> None:
        """Change the run that goes on from its next step; raises where that cannot be."""
        engine = self._engine
        with engine.lock:
            job = engine.current
            if job is None or job.run_id is None or job.stops:
                raise NotFound("No run goes on that could be changed.", cure="Start one first.")
            step = engine.runs.get(job.run_id).status().step
            if request.total_steps is not None and request.total_steps <= step:
                raise InvalidRequest(
                    f"The run is at step {step:,}, so it cannot end at step "
                    f"{request.total_steps:,}.",
                    cure=f"Give at least {step + 1:,}, or stop the run.",
                )
            engine.tell(job, "adjust", changes=request.model_dump(exclude_none=True))

    def settings_now(self, run_id: str) -> Adjust:
        """Return what can be changed of a run, as it is now; raises NotFound for unknown runs."""
        run = self._engine.runs.get(run_id)
        events, changes = self._engine.runs.events(run_id).poll(), adjustments.read(run.folder)
        train, status = run.request.train, run.status()
        steps = [event.learning_rate for event in events if event.type == "step"]
        asked = [event.prompt for event in events if event.type == "answer" and event.prompt]
        chosen = train.watch if train.watch is not None else list(dict.fromkeys(asked))
        return Adjust(
            learning_rate=(steps[-1] if steps else None) or train.learning_rate,
            total_steps=status.total_steps or None,
            watch=adjustments.watched(chosen, changes),
        )

    def _with_run(self, act: Callable[[Job], None]) -> None:
        with self._engine.lock:
            job = self._engine.current
            if job is not None and job.run_id is not None and not job.stops:
                act(job)
