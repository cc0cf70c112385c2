"""Early stopping of a run: keeps the best state, warns about overfitting, stops divergence.

Decisions depend on losses only. The same losses give the same decisions, so a resumed run behaves
like a run that was never interrupted. Knows nothing of how a step is computed.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from peft import PeftModel
from pydantic import BaseModel, ConfigDict

from backend.engine.methods import peft_io
from backend.engine.runs.run_log import RunLog
from backend.errors import Diverged
from backend.files.atomic_files import new_folder, remove_folder
from backend.requests import Train
from backend.results import Evaluation
from backend.runs.data_record import Restart
from backend.runs.events import EventReader, curve

BEST = "best"
NOTE = "best.json"
PARTED = 1.05
"""Overfitting: held-out loss this many times its lowest, twice in a row, as training loss falls."""
RISING = 4
"""Overfitting: so many evaluations in a row, each with a higher held-out loss than before."""
FIRST = 3
BAD_STEPS = 15
"""Divergence: a loss above the limit for so many steps does not recover."""
FAR, FURTHER = 1.5, 0.5
TESTS = 8


def tests_at(total_steps: int) -> set[int]:
    """Return the steps of a run's evaluations: a few, evenly spread, the last one at the end."""
    every = max(1, total_steps // TESTS)
    return {*range(every, total_steps - every // 2, every), total_steps}


class Best(BaseModel):
    """The state with the lowest held-out loss so far; its weights are in the same folder."""

    model_config = ConfigDict(frozen=True)

    step: int
    evaluation: Evaluation


class Point(NamedTuple):
    """An evaluation: step, held-out loss, and the mean training loss since the previous one."""

    step: int
    held_out: float
    training: float


class Guards:
    """Checks the losses of one segment of a run; `write` saves the current adapter to a folder."""

    def __init__(
        self,
        request: Train,
        run_log: RunLog,
        write: Callable[[Path], None],
        *,
        restart: Restart | None = None,
    ) -> None:
        self.folder = run_log.run.folder / BEST
        self.best: Best | None = None
        self.verdict = ""
        """Why the run has to end early; empty while it continues."""
        self.kept = ""
        """Which state was kept as the adapter, where there was a choice."""
        self._request = request
        self._log = run_log
        self._write = write
        self._losses: list[float] = []
        self._points: list[Point] = []
        self._warned = False
        self._recall(run_log.step, restart)

    def _recall(self, step: int, restart: Restart | None) -> None:
        """Restore losses and evaluations of earlier segments from the run's events.

        Those on other data do not count: they cannot be compared.
        """
        others = restart.step if restart is not None else 0
        tested_on_others = others if restart is not None and restart.is_tested_anew else 0
        past = curve(EventReader(self._log.run.events_file).poll())
        tests = dict(zip(past.eval_step, past.eval_loss, strict=True))
        for at, loss in zip(past.step, past.loss, strict=True):
            if at > others:
                self._losses.append(loss)
            planned = at in tests and at in tests_at(self._log.total_steps)
            if planned and at > tested_on_others:
                self._add_point(at, tests[at])
        if self._points and self._log.run.status().early_step == step:
            self._end_early(step)  # the run was interrupted after that, before it was saved
        self.best = read_best(self.folder)
        repeated = self.best is not None and self.best.step > step
        if self.best is not None and (repeated or self.best.step <= tested_on_others):
            remove_folder(self.folder)
            self.best = None

    # -- the end ---------------------------------------------------------------------------------

    def take_best(self, peft: PeftModel, adapter_id: str) -> Best | None:
        """Load the best state into the adapter, where that is wanted and not the last state."""
        if not self._request.keep_best or self.best is None:
            return None
        if self.best.step == self._log.step:
            self.kept = "The last state is the best one; it was kept as the adapter."
            return None
        peft_io.read_weights(peft, adapter_id, self.folder)
        self.kept = (
            f"The best state was kept as the adapter: step {self.best.step:,} "
            f"(held-out loss {self.best.evaluation.loss:.3f})."
        )
        return self.best

    # -- each step -------------------------------------------------------------------------------

    def stepped(self, step: int, loss: float) -> None:
        """Record a step's loss; raise Diverged where it was far above its start for many steps."""
        self._losses.append(loss)
        limit = self.limit
        if limit is None or len(self._losses) < FIRST + BAD_STEPS:
            return
        if min(self._losses[-BAD_STEPS:]) > limit:
            start = sum(self._losses[:FIRST]) / FIRST
            raise Diverged(
                f"The loss started at {start:.2f} and has been above {limit:.2f} for {BAD_STEPS} "
                f"steps; at step {step} it is {loss:.2f}.",
                cure="The learning rate is too high for this data: try a quarter of it. "
                f"{self._last_good()}",
            )

    @property
    def limit(self) -> float | None:
        """The loss above which a step counts as diverging; None before the first steps are done."""
        if len(self._losses) < FIRST:
            return None
        return FAR * sum(self._losses[:FIRST]) / FIRST + FURTHER

    @property
    def good_until(self) -> int | None:
        """The last step before the loss began to diverge; None where it does not diverge."""
        limit, off = self.limit, 0
        while limit is not None and off < len(self._losses) and self._losses[-1 - off] > limit:
            off += 1
        return self._log.step - off if off else None

    def _last_good(self) -> str:
        if self.best is None:
            return "Earlier checkpoints are good."
        return f"The state of step {self.best.step:,} is kept, and earlier checkpoints are good."

    # -- each test -------------------------------------------------------------------------------

    def tested(self, step: int, evaluation: Evaluation, *, planned: bool) -> None:
        """Save the adapter if it is the best so far; decide whether to end early or to warn.

        An evaluation that was not `planned`, as when a run is stopped, does not count for patience.
        """
        if self.best is None or evaluation.loss < self.best.evaluation.loss:
            self.best = Best(step=step, evaluation=evaluation)
            with new_folder(self.folder, replace=True) as folder:
                self._write(folder)
                (folder / NOTE).write_text(self.best.model_dump_json(), encoding="utf-8")
        if planned:
            self._add_point(step, evaluation.loss)
            self._end_early(step)
            if self.verdict:
                self._log.ends_early(step)
            self._warn(step)

    def _add_point(self, step: int, loss: float) -> None:
        since = step - (self._points[-1].step if self._points else 0)
        recent = self._losses[-since:] or [loss]
        self._points.append(Point(step, loss, sum(recent) / len(recent)))

    def _lowest(self) -> int:
        return min(range(len(self._points)), key=lambda i: self._points[i].held_out)

    def _end_early(self, step: int) -> None:
        lowest = self._lowest()
        worse = len(self._points) - 1 - lowest
        if self._request.patience is not None and worse >= self._request.patience:
            best = self._points[lowest]
            self.verdict = (
                f"Ended early after step {step:,}: held-out loss was lowest at step "
                f"{best.step:,} ({best.held_out:.3f}) and has not improved in {worse} "
                f"{'test' if worse == 1 else 'tests'} since."
            )

    def _rises(self) -> bool:
        """Whether held-out loss rose at each evaluation, however little, as training loss fell."""
        last = self._points[-RISING:]
        rises = all(later.held_out > earlier.held_out for earlier, later in pairwise(last))
        return rises and len(last) == RISING and last[-1].training < last[0].training

    def _warn(self, step: int) -> None:
        """Warn once about overfitting: held-out loss rises while training loss falls."""
        best, last = self._points[self._lowest()], self._points[-2:]
        far = len(last) == 2 and all(
            point.step > best.step
            and point.held_out > PARTED * best.held_out
            and point.training < best.training
            for point in last
        )
        parted = far or self._rises()
        if parted and not self._warned:
            self._warned = True
            self._log.warned(
                f"Held-out loss has risen from {best.held_out:.3f} at step {best.step:,} to "
                f"{last[-1].held_out:.3f}, while training loss still falls: it starts to overfit "
                "(it memorises the examples). Use fewer epochs or more data. Keep the best keeps "
                "the state with the lowest held-out loss."
            )


def read_best(folder: Path) -> Best | None:
    """Return the best state that a folder holds; None where it holds none."""
    try:
        return Best.model_validate_json((folder / NOTE).read_bytes())
    except (OSError, ValueError):
        return None


def drop_after(checkpoints: Path, step: int) -> None:
    """Remove the checkpoints after the last good step."""
    for folder in checkpoints.glob("checkpoint-*"):
        if int(folder.name.rsplit("-", 1)[1]) > step:
            remove_folder(folder)
