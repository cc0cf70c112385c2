"""What a run records while it trains: events, status, speed and time left.

Knows the files of a run, and nothing of models or of how a step is computed."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backend.engine.core.job_control import Control
from backend.errors import Stopped, WorkbenchError
from backend.results import Evaluation, NeutralText, Sample
from backend.results.training_layout import TrainingLayout
from backend.runs.adjustments import Adjustment
from backend.runs.data_record import Begun, DataRecord
from backend.runs.events import EventType, EventWriter
from backend.runs.run_records import RunStatus
from backend.runs.run_store import Run

log = logging.getLogger(__name__)
STATUS_EVERY_S = 1.0
PREDICTED_AFTER = 10
"""Steps after which a run's duration is predicted, to compare it with the real one later."""


class RunLog:
    """One segment of a run on disk. Every step is an event; the status is written once a second.

    A run that is resumed comes with its status `before`. Until its first step everything is held
    back, so a failure until then leaves the run as it was.
    """

    def __init__(self, run: Run, control: Control, before: RunStatus | None = None) -> None:
        self.run = run
        self._before = before
        self._held: list[tuple[EventType, dict[str, Any]]] = []
        self._held_status: dict[str, object] = {}
        self.losses: list[float] = []
        self.step = 0
        self.total_steps = 0
        self.trained_seconds = 0.0
        self._fresh_seconds = 0.0
        self._fresh_tokens = 0
        self._control = control
        self._events = EventWriter(run.events_file)
        self._status_written = 0.0

    def close(self) -> None:
        self._events.close()

    def _write(self, type: EventType, **fields: Any) -> None:
        """Write an event, or hold it back until the first step."""
        if self._before is not None:
            self._held.append((type, fields))
        else:
            self._events.write(type, **fields)

    def _update(self, **changes: object) -> None:
        """Replace the status, or hold the changes back until the first step."""
        if self._before is not None:
            self._held_status |= changes
        else:
            self.run.update(**changes)

    def _go_on(self) -> None:
        """Write what was held back: from here the segment counts."""
        if self._before is None:
            return
        for type, fields in self._held:
            self._events.write(type, **fields)
        self.run.update(**self._held_status)
        self._before = None

    @property
    def tokens_per_second(self) -> float:
        """Tokens of this segment without padding, per second of optimisation time."""
        return self._fresh_tokens / self._fresh_seconds if self._fresh_seconds else 0.0

    def begin(
        self,
        *,
        step: int,
        total_steps: int,
        seconds: float,
        resumed: bool,
        examples: str = "",
        data: DataRecord | None = None,
        extra_epochs: Sequence[float] = (),
        layout: TrainingLayout = "packed",
        layout_note: str = "",
    ) -> None:
        """Record the start; after `resumed` the curve's points beyond `step` are ignored.

        `examples` is the digest of the examples, `data` what else is known of them, `extra_epochs`
        are all extensions, `layout_note` says how and why the examples are laid out.
        """
        self.step, self.total_steps, self.trained_seconds = step, total_steps, seconds
        extras = [*extra_epochs]
        begun = Begun(examples=examples, data=data, extra_epochs=extras, layout=layout)
        kind: EventType = "resumed" if resumed else "started"
        self._write(kind, step=step, total_steps=total_steps, begun=begun)
        self._update(
            step=step,
            total_steps=total_steps,
            kept_step=0,
            examples=examples,
            data=data,
            data_change=None,
            neutral_text=None,
            extra_epochs=extras,
            layout=layout,
            layout_note=layout_note,
            came_from=None,
        )
        if layout_note:
            self._write("notice", text=layout_note)
        if not resumed:
            self._go_on()

    def data_changed(self, text: str) -> None:
        """Record that the run goes on with other data from here."""
        self._write("data-changed", step=self.step, text=text)

    def base_evaluated(self, evaluation: Evaluation | None) -> None:
        """Record the base's evaluation on other held-out examples than at the start."""
        self._update(evaluation_before=evaluation)

    def precision(self, precision: str, reason: str) -> None:
        """Record the compute precision of the steps and why it was chosen."""
        self._write("precision", text=f"Computing in {precision}: {reason}.")
        self._update(precision=precision)

    def prepared(self, text: str) -> None:
        """Record what was done to the base for this run, and why."""
        self._write("notice", text=text)
        self._update(preparation=text)

    def noted(self, text: str) -> None:
        """Record a note on how the run is done."""
        self._write("notice", text=text)

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Record an evaluation on the held-out examples; step 0 is that of the base."""
        self._write(
            "evaluation",
            step=step,
            loss=evaluation.loss,
            exact_match=evaluation.exact_match,
            token_accuracy=evaluation.token_accuracy,
        )
        changes: dict[str, object] = {
            "eval_loss": evaluation.loss,
            "exact_match": evaluation.exact_match,
        }
        if step == 0:
            changes["evaluation_before"] = evaluation
        self._update(**changes)

    def stepped(self, step: int, logs: dict[str, float], *, tokens: int, seconds: float) -> None:
        """Record a step: its loss, its tokens without padding, its optimisation time in seconds."""
        self._go_on()
        self.step = step
        self.losses.append(logs["loss"])
        self._fresh_tokens += tokens
        self._fresh_seconds += seconds
        self.trained_seconds += seconds
        left = (self.total_steps - step) * self._fresh_seconds / len(self.losses)
        norm = logs.get("grad_norm")
        left_out = norm is not None and not math.isfinite(norm)
        self._write(
            "step",
            step=step,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            gradient_norm=None if left_out else norm,
            tokens_per_second=self.tokens_per_second,
            seconds_left=left,
        )
        if left_out:  # otherwise the run would have ended as diverged
            self.noted(
                f"Step {step:,} was skipped and changed no weight: its scaled gradients were too "
                "large for fp16. The loss scale was halved for the next steps."
            )
        if len(self.losses) == PREDICTED_AFTER:
            self._update(predicted_seconds=self.trained_seconds + left)
        text = f"step {step:,} of {self.total_steps:,}, {self.tokens_per_second:,.0f} tokens/s"
        self._control.progress(text, step / self.total_steps, left)
        self.write_status()

    def saved(self, step: int) -> None:
        """Record a checkpoint; after an interruption it may hold a step without a logged loss."""
        self._go_on()
        self.step = max(self.step, step)
        self._write("saved", step=step)
        self.write_status(force=True)

    def paused(self) -> None:
        """Record that the run is paused."""
        self._go_on()
        self._write("paused", step=self.step)
        self.write_status(force=True)
        self._update(paused=True)

    def unpaused(self) -> None:
        """Record that the run is no longer paused."""
        self._write("unpaused", step=self.step)
        self._update(paused=False)

    def adjusted(self, change: Adjustment, *, total_steps: int, text: str) -> None:
        """Record that the run continues with other settings from here."""
        self._go_on()
        self._predict_for(total_steps)
        rate = change.learning_rate
        self._write(
            "adjusted", step=change.step, total_steps=total_steps, learning_rate=rate, text=text
        )
        self._update(total_steps=total_steps)

    def _predict_for(self, total_steps: int) -> None:
        """Scale the predicted time to another number of steps."""
        predicted = self.run.status().predicted_seconds
        if predicted is not None:
            self._update(predicted_seconds=predicted * total_steps / self.total_steps)
        self.total_steps = total_steps

    def answered(self, step: int, prompt: str, text: str) -> None:
        """Record the answer to a test question; the answer at step 0 is the base's."""
        self._write("answer", step=step, prompt=prompt, text=text)

    def sampled(self, sample: Sample) -> None:
        """Record how a held-out example is answered at the end."""
        self._write(
            "sample",
            step=self.step,
            prompt=sample.prompt,
            reference=sample.reference,
            base=sample.base,
            text=sample.adapter,
        )

    def on_neutral_text(self, found: NeutralText) -> None:
        """Record how the perplexity on neutral text has changed."""
        before, after = found.perplexity_before, found.perplexity_after
        now = "a value that is not finite" if after is None else f"{after:.4g}"
        text = f"On neutral text its perplexity went from {before:.4g} to {now}."
        self._write("neutral-text", step=self.step, text=text)
        self._update(neutral_text=found)

    def notice(self, text: str) -> None:
        """Record a note for the user."""
        self._write("notice", step=self.step, text=text)

    def kept(self, step: int, evaluation: Evaluation) -> None:
        """Record the step and evaluation of the adapter where it is not the last state."""
        self._update(kept_step=step, eval_loss=evaluation.loss, exact_match=evaluation.exact_match)

    def ends_early(self, step: int) -> None:
        """Record that the run needs no step after this one, for a segment that resumes it."""
        self._update(early_step=step)

    def warned(self, text: str) -> None:
        """Record a warning for the user."""
        self._write("warning", step=self.step, text=text)

    def conclude(self, state: str, *, peak_memory: int, early: str = "", kept: str = "") -> None:
        """Record the end; only after this is the run reported as done.

        `early` is why it ended before its last step, `kept` which state became the adapter.
        """
        self._go_on()
        finished = state == "finished"
        text = early or (
            f"Finished after {self.step:,} steps."
            if finished
            else f"Stopped after step {self.step:,} of {self.total_steps:,}; everything is saved."
        )
        text = f"{text} {kept}".strip()
        self.write_status(force=True)
        self._write("finished" if finished else "stopped", step=self.step, text=text)
        self._update(
            state=state,
            peak_memory_bytes=peak_memory,
            early_step=0,
            message=text,
            cure="" if finished else "Resume continues from there.",
        )

    def failed(self, error: WorkbenchError) -> None:
        """Record why a run failed, as far as a full disk allows; before a step it stays as it was.

        A run in separate processes then still says why: others learn it only from its folder.
        """
        state = "stopped" if isinstance(error, Stopped) else "failed"
        why = {"message": error.what, "cure": error.cure, "error": type(error).__name__}
        try:
            if self._before is not None:
                told = {**why, "data_change": None} if self.run.status().launched else {}
                self.run.put_back(self._before, **told)
            else:
                self.run.update(state=state, step=self.step, **why)
                self._events.write("stopped" if state == "stopped" else "failed", text=str(error))
            with self.run.log.open("a", encoding="utf-8") as file:
                file.write(f"{error}\n{error.details}\n")
        except (OSError, WorkbenchError) as second:
            log.error("The run's failure could not be recorded: %s", second)

    def write_status(self, *, force: bool = False) -> None:
        """Replace the run's status, unless that was done a moment ago."""
        now = time.monotonic()
        if not force and now - self._status_written < STATUS_EVERY_S:
            return
        self._status_written = now
        self._update(
            step=self.step,
            loss=self.losses[-1] if self.losses else None,
            tokens_per_second=self.tokens_per_second or None,
            trained_seconds=self.trained_seconds,
        )


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Redirect what libraries print (file descriptors 1 and 2, too) to a run's log."""
    _flush()
    saved = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
        finally:
            _flush()
            for descriptor, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)


def _flush() -> None:
    with suppress(OSError):  # a log line that does not fit on a full disk must not end the run
        sys.stdout.flush()
