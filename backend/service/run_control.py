"""Commands to the current run: pause, resume, save now, change settings.

A command is sent to the engine at once and takes effect at the end of the current step. Without a
run a command does nothing, except `adjust`, which raises NotFound.
"""

from collections.abc import Callable

from backend.errors import InvalidRequest, NotFound
from backend.requests import Adjust
from backend.runs import adjustments
from backend.service.engine_client import EngineLink
from backend.service.jobs import Job


class RunControl:
    """Sends commands to the current run, if there is one."""

    def __init__(self, engine: EngineLink) -> None:
        self._engine = engine

    def pause(self) -> None:
        """Pause the run after this step; it stays in memory and its model can answer."""

        def ask(job: Job) -> None:
            job.wish = "" if job.paused else "pause"
            self._engine.tell(job, "pause")

        self._with_run(ask)

    def resume(self) -> None:
        """Resume a paused run, exactly as if it had not been paused."""

        def ask(job: Job) -> None:
            job.wish = "resume"  # even if the message that it has paused is still on its way
            self._engine.tell(job, "resume")

        self._with_run(ask)

    def save_now(self) -> None:
        """Let the run write an additional checkpoint after this step.

        A run in separate processes receives it too, if there is no other run.
        """
        engine = self._engine
        with engine.lock:
            going = [engine.current, *engine.sides.shown()]
            run = next((job for job in going if job and job.run_id and not job.stops), None)
            if run is not None:
                engine.tell(run, "save")

    def adjust(self, request: Adjust) -> None:
        """Change settings of the current run from its next step; raises if that is not possible."""
        engine = self._engine
        with engine.lock:
            job = engine.current
            if job is None or job.run_id is None or job.stops:
                raise NotFound("There is no run to change.", cure="Start one first.")
            step = engine.runs.get(job.run_id).status().step
            if request.total_steps is not None and request.total_steps <= step:
                raise InvalidRequest(
                    f"The run is at step {step:,}, so it cannot end at step "
                    f"{request.total_steps:,}.",
                    cure=f"Enter at least {step + 1:,}, or stop the run.",
                )
            engine.tell(job, "adjust", changes=request.model_dump(exclude_none=True))

    def settings_now(self, run_id: str) -> Adjust:
        """Return the current values of what can be changed; raises NotFound for unknown runs."""
        run = self._engine.runs.get(run_id)
        events, changes = self._engine.runs.events(run_id).poll(), adjustments.read(run.folder)
        train, status = run.request.train, run.status()
        steps = [event.learning_rate for event in events if event.type == "step"]
        asked = [event.prompt for event in events if event.type == "answer" and event.prompt]
        chosen = train.watch if train.watch is not None else list(dict.fromkeys(asked))
        return Adjust(
            learning_rate=(steps[-1] if steps else None) or train.rate,
            total_steps=status.total_steps or None,
            watch=adjustments.watched(chosen, changes),
        )

    def _with_run(self, act: Callable[[Job], None]) -> None:
        with self._engine.lock:
            job = self._engine.current
            if job is not None and job.run_id is not None and not job.stops:
                act(job)
