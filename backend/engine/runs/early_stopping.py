"""Guards of a run: the best state is kept, learning by heart is noticed, divergence is stopped.

A guard looks at losses only; the same losses give the same verdicts, so a resumed run goes on as
one that was never stopped would.
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
from backend.runs.events import EventReader, curve

BEST = "best"
NOTE = "best.json"
PARTED = 1.05
"""Held-out loss this many times the lowest, twice in a row, while training loss falls on."""
RISING = 4
"""Tests in a row of which each held-out loss is above the one before."""
FIRST = 3
BAD_STEPS = 15
"""A loss that far off for so many steps does not come back."""
FAR, FURTHER = 1.5, 0.5
TESTS = 8


def tests_at(total_steps: int) -> set[int]:
    """Spread a handful of tests evenly over a run, the last at its end."""
    every = max(1, total_steps // TESTS)
    return {*range(every, total_steps - every // 2, every), total_steps}


class Best(BaseModel):
    """The state with the lowest held-out loss so far; its weights lie beside this note."""

    model_config = ConfigDict(frozen=True)

    step: int
    evaluation: Evaluation


class Point(NamedTuple):
    """A test: its step, its held-out loss, and the mean training loss since the one before."""

    step: int
    held_out: float
    training: float


class Guards:
    """What watches over one segment of a run; `write` puts the adapter as it is into a folder."""

    def __init__(self, request: Train, run_log: RunLog, write: Callable[[Path], None]) -> None:
        self.folder = run_log.run.folder / BEST
        self.best: Best | None = None
        self.verdict = ""
        """Why the run is to end early; empty while it is to go on."""
        self.kept = ""
        """Which state the adapter is, where there was a choice."""
        self._request = request
        self._log = run_log
        self._write = write
        self._losses: list[float] = []
        self._points: list[Point] = []
        self._warned = False
        self._recall(run_log.step)

    def _recall(self, step: int) -> None:
        """Take up what the run's events tell of the steps before this segment."""
        past = curve(EventReader(self._log.run.events_file).poll())
        tests = dict(zip(past.eval_step, past.eval_loss, strict=True))
        for at, loss in zip(past.step, past.loss, strict=True):
            self._losses.append(loss)
            if at in tests and at in tests_at(self._log.total_steps):
                self._add_point(at, tests[at])
        if self._points and self._log.run.status().early_step == step:
            self._end_early(step)  # it broke off after that, before it was saved
        self.best = read_best(self.folder)
        if self.best is not None and self.best.step > step:  # of steps that are taken anew
            remove_folder(self.folder)
            self.best = None

    # -- the end ---------------------------------------------------------------------------------

    def take_best(self, peft: PeftModel, adapter_id: str) -> Best | None:
        """Give the adapter its best state, where that is wanted and not the one it has."""
        if not self._request.keep_best or self.best is None:
            return None
        if self.best.step == self._log.step:
            self.kept = "The last state is the best, and is the adapter."
            return None
        peft_io.read_weights(peft, adapter_id, self.folder)
        self.kept = (
            f"The adapter is the best state, of step {self.best.step:,} "
            f"(held-out loss {self.best.evaluation.loss:.3f})."
        )
        return self.best

    # -- each step -------------------------------------------------------------------------------

    def stepped(self, step: int, loss: float) -> None:
        """Raise Diverged where the loss has been far above its start for many steps."""
        self._losses.append(loss)
        limit = self.limit
        if limit is None or len(self._losses) < FIRST + BAD_STEPS:
            return
        if min(self._losses[-BAD_STEPS:]) > limit:
            start = sum(self._losses[:FIRST]) / FIRST
            raise Diverged(
                f"The loss began at {start:.2f} and has been above {limit:.2f} for {BAD_STEPS} "
                f"steps; in step {step} it is {loss:.2f}.",
                cure="The learning rate is too high for this data: try a quarter of it. "
                f"{self._last_good()}",
            )

    @property
    def limit(self) -> float | None:
        """The loss above which a step counts as far off; None before there is a start."""
        if len(self._losses) < FIRST:
            return None
        return FAR * sum(self._losses[:FIRST]) / FIRST + FURTHER

    @property
    def good_until(self) -> int | None:
        """The last step before the loss went far off; None where it is not."""
        limit, off = self.limit, 0
        while limit is not None and off < len(self._losses) and self._losses[-1 - off] > limit:
            off += 1
        return self._log.step - off if off else None

    def _last_good(self) -> str:
        if self.best is None:
            return "Checkpoints from before are good."
        return (
            f"The state of step {self.best.step:,} is kept, and checkpoints from before are good."
        )

    # -- each test -------------------------------------------------------------------------------

    def tested(self, step: int, evaluation: Evaluation, *, planned: bool) -> None:
        """Keep the adapter if it is the best so far; see whether it is time to end or to warn.

        A test that was not `planned`, as of a run that is stopped, takes no patience.
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
                f"{best.step:,} ({best.held_out:.3f}), and no better in {worse} "
                f"{'test' if worse == 1 else 'tests'} since."
            )

    def _rises(self) -> bool:
        """Tell whether held-out loss rose from test to test, however little, as training's fell."""
        last = self._points[-RISING:]
        rises = all(later.held_out > earlier.held_out for earlier, later in pairwise(last))
        return rises and len(last) == RISING and last[-1].training < last[0].training

    def _warn(self, step: int) -> None:
        """Say once that training and held-out loss part."""
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
                f"{last[-1].held_out:.3f}, while training loss still falls: it begins to learn "
                "by heart. Fewer epochs or more data help; Keep the best takes the state of then."
            )


def read_best(folder: Path) -> Best | None:
    """Return what is known of the best state that a folder holds, if it does."""
    try:
        return Best.model_validate_json((folder / NOTE).read_bytes())
    except (OSError, ValueError):
        return None


def drop_after(checkpoints: Path, step: int) -> None:
    """Remove the checkpoints of later steps than the last good one."""
    for folder in checkpoints.glob("checkpoint-*"):
        if int(folder.name.rsplit("-", 1)[1]) > step:
            remove_folder(folder)
