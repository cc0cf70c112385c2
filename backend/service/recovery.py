"""Death and return of the engine: what is said of it, and the steps that bring the session back."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from backend import requests as rq
from backend.errors import WorkbenchError
from backend.files.atomic_files import remove_partials
from backend.runs.run_store import Runs
from backend.service.jobs import Job
from backend.workspace.session_recipe import Recipe

REBUILDING = "The session is being rebuilt."
BY_ITSELF = "The session comes back by itself."
"""The same for what stays to be read when it is back."""
TRY_AGAIN = "Close other programs, then press Start again at the top."
SLOT_LOST = "The hot-swap slot has to be prepared again."


class Replay:
    """The steps of a recipe that are still to be done, and the job of the one that runs."""

    def __init__(self, begin: Callable[[rq.Request], Job]) -> None:
        self._begin = begin
        self._steps: list[rq.Request] = []
        self.job: Job | None = None

    def start(self, recipe: Recipe) -> Job | None:
        """Start rebuilding a session from its recipe; returns the job of its base."""
        if recipe.base is None:
            return None
        self._steps = [recipe.base]
        if recipe.active:
            self._steps.append(rq.SetActive(adapters=recipe.active))
        return self.step()

    def step(self) -> Job | None:
        """Start the next step, if one is left."""
        self.job = None
        if not self._steps:
            return None
        self.job = self._begin(self._steps.pop(0))
        return self.job

    def skip_the_rest(self) -> None:
        """Do no further step; the running one still ends as it ends."""
        self._steps.clear()

    def give_up(self) -> None:
        """Forget the steps and the job: its engine is gone."""
        self._steps, self.job = [], None


def death_text(job: Job | None, reason: str, runs: Runs) -> str:
    """Say what the engine's death broke off; a run of training is closed with it."""
    if job is not None and job.run_id is not None:
        run = runs.get(job.run_id)
        if job.stops >= 2:
            runs.interrupt(run, "Ended at once, as asked.", state="stopped")
            return f"{job.title} was ended at once."
        runs.interrupt(run, f"The model process is gone: {reason}.")
        checkpoint = run.latest_checkpoint()
        step = checkpoint.name.rsplit("-", 1)[1] if checkpoint else None
        advice = f"Resume goes on from step {step}." if step else "It had no checkpoint yet."
        return f"{job.title} broke off: the model process is gone, {reason}. {advice}"
    if job is not None and job.stops >= 2:
        return f"{job.title} did not end when asked, so the model process was ended."
    during = f" during: {job.title}" if job else ""
    return f"The model process is gone{during}: {reason}."


def cannot_start(error: OSError) -> str:
    """Say that no model process can be started, and what to do."""
    return f"The model process cannot be started: {error.strerror or error}. {TRY_AGAIN}"


def what_follows(recipe: Recipe, was_replaying: bool) -> str:
    """Say whether the session comes back."""
    if was_replaying:
        return "It died while the session was being rebuilt, so that is given up. Load a base."
    return REBUILDING if recipe.base is not None else ""


def end_unwritten(job: Job, error: WorkbenchError, runs: Runs) -> None:
    """Record why a training ended that could not write it down itself.

    It was refused before it began, or the disk is full: else it seemed to go on for ever.
    """
    if job.run_id is None:
        return
    with suppress(WorkbenchError, OSError, ValueError):  # it was discarded meanwhile
        runs.fail(runs.get(job.run_id), error)


def sweep(job: Job) -> None:
    """Remove what a process that is gone was still writing."""
    if isinstance(job.request, rq.Merge):
        remove_partials(Path(job.request.destination))
