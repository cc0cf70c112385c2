"""The end of an engine process: messages about it, and the steps that restore the session."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from backend import requests as rq
from backend.errors import WorkbenchError
from backend.files.atomic_files import remove_partials
from backend.runs.run_store import Runs
from backend.service.jobs import Job
from backend.workspace.session_recipe import Recipe

REBUILDING = "The session is being restored."
BY_ITSELF = "The session is restored automatically."
"""The same, for a text that is still shown after that."""
TRY_AGAIN = "Close other programs, then press Start again at the top."
SLOT_LOST = "The hot-swap slot must be prepared again."


class Replay:
    """The remaining steps of a recipe, and the job of the current step."""

    def __init__(self, begin: Callable[[rq.Request], Job]) -> None:
        self._begin = begin
        self._steps: list[rq.Request] = []
        self.job: Job | None = None

    def start(self, recipe: Recipe) -> Job | None:
        """Start to restore a session from its recipe; returns the job that loads the base."""
        if recipe.base is None:
            return None
        self._steps = [recipe.base]
        if recipe.active:
            self._steps.append(rq.SetActive(adapters=recipe.active))
        return self.step()

    def step(self) -> Job | None:
        """Start the next step, if there is one."""
        self.job = None
        if not self._steps:
            return None
        self.job = self._begin(self._steps.pop(0))
        return self.job

    def skip_the_rest(self) -> None:
        """Do no further step; the current one still ends normally."""
        self._steps.clear()

    def give_up(self) -> None:
        """Forget the steps and the job, because their engine has ended."""
        self._steps, self.job = [], None


def death_text(job: Job | None, reason: str, runs: Runs) -> str:
    """Return what was interrupted by the engine's end; a training run is recorded as ended."""
    if job is not None and job.run_id is not None:
        run = runs.get(job.run_id)
        if job.stops >= 2:
            runs.interrupt(run, "Stopped immediately on request.", state="stopped")
            return f"{job.title} was stopped immediately."
        runs.interrupt(run, f"The model process ended: {reason}.")
        checkpoint = run.latest_checkpoint()
        step = checkpoint.name.rsplit("-", 1)[1] if checkpoint else None
        advice = f"Resume continues from step {step}." if step else "It had no checkpoint yet."
        return f"{job.title} was interrupted. The model process ended: {reason}. {advice}"
    if job is not None and job.stops >= 2:
        return f"{job.title} did not stop on request, so the model process was killed."
    during = f" during {job.title!r}" if job else ""
    return f"The model process ended{during}: {reason}."


def cannot_start(error: OSError) -> str:
    """Return that no model process can be started, with a hint."""
    return f"The model process cannot be started: {error.strerror or error}. {TRY_AGAIN}"


def what_follows(recipe: Recipe, was_replaying: bool) -> str:
    """Return whether the session will be restored."""
    if was_replaying:
        return "It ended while the session was being restored, so that was cancelled. Load a base."
    return REBUILDING if recipe.base is not None else ""


def end_unwritten(job: Job, error: WorkbenchError, runs: Runs) -> None:
    """Record why a training run ended if it could not record that itself.

    It was rejected before it started, or the disk is full. Without this it would look unfinished.
    """
    if job.run_id is None:
        return
    with suppress(WorkbenchError, OSError, ValueError):  # it may have been discarded
        runs.fail(runs.get(job.run_id), error)


def sweep(job: Job) -> None:
    """Remove the unfinished output of a process that has ended."""
    if isinstance(job.request, rq.Merge):
        remove_partials(Path(job.request.destination))
