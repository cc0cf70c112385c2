"""A training run from its folder to its adapter in the library, and back out of every failure.

Prepare (data, targets, adapter) -> measure the base -> train -> publish and verify. Other adapters
are off meanwhile; the active set from before returns whatever happens.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel

from backend.engine import adapters, data, memory, packing, saving, steps, tokens
from backend.engine.control import Control
from backend.engine.failures import translate
from backend.engine.session import Session
from backend.engine.trainer import AdapterTrainer, RunCallback, arguments
from backend.errors import Stopped, WorkbenchError
from backend.events import EventWriter
from backend.methods import method_of
from backend.requests import Train
from backend.results import AdapterInfo, Evaluation, RunResult
from backend.runs import Run
from backend.settings import Settings

log = logging.getLogger(__name__)
EVALUATIONS = 8
EVALUATED_EXAMPLES = 200
STATUS_EVERY_S = 1.0


def train(
    session: Session, run: Run, control: Control, settings: Settings, *, resume: bool = False
) -> RunResult:
    """Train a run's adapter, or go on from its last checkpoint; the run folder tells the story.

    A failure leaves the session as it was and the run `failed` with its reason.
    """
    run.claim()
    events = EventWriter(run.events_file)
    try:
        with _output_to(run.log):
            return _Training(session, run, control, settings, events, resume=resume).execute()
    except BaseException as error:
        _record_failure(run, events, translate(error))
        raise
    finally:
        events.close()


class _Training:
    """One run while it goes on."""

    def __init__(
        self,
        session: Session,
        run: Run,
        control: Control,
        settings: Settings,
        events: EventWriter,
        *,
        resume: bool,
    ) -> None:
        self.session = session
        self.run = run
        self.request: Train = run.request.train
        self.adapter_id = run.request.adapter_id
        self.control = control
        self.settings = settings
        self.events = events
        self.resumed_from = run.latest_checkpoint() if resume else None
        self.before = run.status()
        self.trained_seconds = self.before.trained_seconds if resume else 0.0
        self.trained_tokens = 0
        self.fresh_seconds = 0.0
        self.losses: list[float] = []
        self.evaluation: Evaluation | None = None
        self._status_written = 0.0

    def execute(self) -> RunResult:
        """Do the whole run; see the module's docstring for the order."""
        self.control.progress("Reading the examples", force=True)
        base = self.session.base
        memory.reset_peak(base.device)
        resident = memory.resident(base.device)
        self._prepare_data()
        peft = self._prepare_adapter()
        self.run_peak = 0
        try:
            with steps.step_mode(base, checkpointing=self.request.gradient_checkpointing):
                self._train(peft)
            self.run_peak = max(memory.peak(base.device) - resident, 0)
            state = "finished" if self.step >= self.total_steps else "stopped"
            self.control.progress("Saving and reading back", 1.0, force=True)
            info = self._info(state)
            difference = saving.publish(self.session, info)
        except BaseException:
            self.session.drop(self.adapter_id)
            raise
        finally:
            self.session.activate(self.session.active_ids)
        return self._conclude(state, info, difference)

    # -- preparation -----------------------------------------------------------------------------

    def _prepare_data(self) -> None:
        source = data.read(
            self.request.data, eval_share=self.request.eval_share, seed=self.request.seed
        )
        corpus = tokens.tokenise(
            source, self.session.base.tokenizer, max_length=self.longest_example()
        )
        lengths = [len(document) for document in corpus.train]
        plan = packing.plan(
            lengths,
            budget=self.request.tokens_per_step,
            epochs=self.request.epochs,
            seed=self.request.seed,
        )
        self.packs = packing.Packs(corpus.train, plan)
        held_out = corpus.held_out[:EVALUATED_EXAMPLES]
        order = list(range(len(held_out)))
        sizes = [len(document) for document in held_out]
        self.held_out = packing.Packs(
            held_out, packing.fill(sizes, order, self.request.tokens_per_step)
        )
        self.total_steps = total_steps(self.request, len(plan))
        self.step = 0

    def longest_example(self) -> int:
        """Return the tokens an example may have: the request's limit, the budget, the context."""
        context = self.session.base.facts.context_length
        return min(self.request.longest, context) if context else self.request.longest

    def _prepare_adapter(self) -> PeftModel:
        """Put the run's adapter on the model, trainable, alone."""
        session, request = self.session, self.request
        if self.resumed_from is not None:
            config = adapters.read_config(self.resumed_from)
        elif request.start_from is not None:
            start = session.library.get(request.start_from)
            session.ensure_loaded(start)
            config = adapters.read_config(session.library.folder(start.id))
        else:
            config = adapters.configure(
                request.adapter, session.layers(), session.base.facts.source
            )
        session.drop(self.adapter_id)  # a stopped run's adapter, about to be trained on
        torch.manual_seed(request.seed)
        peft = session.add(self.adapter_id, adapters.trainable(config))
        if request.start_from is not None and self.resumed_from is None:
            adapters.copy_weights(peft, start.id, self.adapter_id)
        peft.set_adapter(self.adapter_id)
        return peft

    # -- the loop --------------------------------------------------------------------------------

    def _train(self, peft: PeftModel) -> None:
        base, resumed = self.session.base, self.resumed_from
        longest = sorted(self.packs.documents, key=len)[: 3]
        steps.require_isolation(base, longest)
        self._choose_precision(peft)
        started = int(resumed.name.rsplit("-", 1)[1]) if resumed else 0
        self.step = started
        self.events.write(
            "resumed" if resumed else "started", step=started, total_steps=self.total_steps
        )
        if resumed is None:
            self.session.activate([])  # what the base alone makes of the held-out examples
            self.evaluation_before = self._evaluate(0)
            peft.set_adapter(self.adapter_id)
        else:
            self.evaluation_before = self.before.evaluation_before
        self.run.update(total_steps=self.total_steps, evaluation_before=self.evaluation_before)
        trainer = self._trainer(peft)
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        peft.eval()
        if self.step not in self._evaluate_at():
            self._evaluate(self.step)

    def _choose_precision(self, peft: PeftModel) -> None:
        """Measure, or keep what the run began with, so that a resumed run goes on the same."""
        if self.resumed_from is not None and self.before.precision:
            self.precision, self.reason = self.before.precision, "as this run began"
        else:
            peft.train()
            self.precision, self.reason = steps.choose_precision(
                peft, self.packs, self.session.base, self.request.precision
            )
        self.run.update(precision=self.precision)
        self.events.write("precision", text=f"Computing in {self.precision}: {self.reason}.")

    def _trainer(self, peft: PeftModel) -> AdapterTrainer:
        seconds = self.settings.demo_seconds if self.settings.demo else None
        return AdapterTrainer(
            model=peft,
            base=self.session.base,
            adapter_id=self.adapter_id,
            packs=self.packs,
            precision=self.precision,
            control=self.control,
            arguments=arguments(
                self.request,
                folder=self.run.checkpoints,
                total_steps=self.total_steps,
                device=self.session.base.device.type,
            ),
            callbacks=[
                RunCallback(
                    self.control,
                    on_step=self._on_step,
                    on_save=self._on_save,
                    evaluate_at=self._evaluate_at(),
                    on_evaluate=self._evaluate,
                    deadline=None if seconds is None else time.monotonic() + seconds,
                )
            ],
        )

    def _evaluate_at(self) -> set[int]:
        """Spread a handful of evaluations evenly over the run, the last at its end."""
        every = max(1, self.total_steps // EVALUATIONS)
        return {*range(every, self.total_steps - every // 2, every), self.total_steps}

    def _evaluate(self, step: int) -> Evaluation | None:
        if not len(self.held_out):
            return None
        self.evaluation = steps.evaluate(
            self.session.model, self.held_out, self.session.base.device, self.precision
        )
        self.events.write(
            "evaluation",
            step=step,
            loss=self.evaluation.loss,
            exact_match=self.evaluation.exact_match,
            token_accuracy=self.evaluation.token_accuracy,
        )
        self.run.update(eval_loss=self.evaluation.loss, exact_match=self.evaluation.exact_match)
        return self.evaluation

    def _on_step(self, step: int, logs: dict[str, float], seconds: float) -> None:
        """Write the step's event; status and progress a little less often."""
        first = (step - 1) * self.request.accumulation
        last = min(step * self.request.accumulation, len(self.packs))
        self.step = step
        self.trained_tokens += sum(self.packs.tokens(index) for index in range(first, last))
        self.fresh_seconds += seconds
        self.trained_seconds += seconds
        self.losses.append(logs["loss"])
        left = (self.total_steps - step) * self.fresh_seconds / len(self.losses)
        self.events.write(
            "step",
            step=step,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            gradient_norm=logs.get("grad_norm"),
            tokens_per_second=self.tokens_per_second,
            seconds_left=left,
        )
        text = f"step {step} of {self.total_steps}, {self.tokens_per_second:,.0f} tokens/s"
        self.control.progress(text, step / self.total_steps, left)
        self._write_status()

    def _on_save(self, step: int) -> None:
        self.events.write("saved", step=step)
        self._write_status(force=True)

    def _write_status(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._status_written < STATUS_EVERY_S:
            return
        self._status_written = now
        self.run.update(
            step=self.step,
            loss=self.losses[-1] if self.losses else None,
            tokens_per_second=self.tokens_per_second,
            trained_seconds=self.trained_seconds,
        )

    @property
    def tokens_per_second(self) -> float:
        """Unpadded tokens over optimisation time of this sitting."""
        return self.trained_tokens / self.fresh_seconds if self.fresh_seconds else 0.0

    # -- the end ---------------------------------------------------------------------------------

    def _info(self, state: str) -> AdapterInfo:
        assert self.session.peft is not None
        config = self.session.peft.peft_config[self.adapter_id]
        facts, request = self.session.base.facts, self.run.request
        return AdapterInfo(
            id=self.adapter_id,
            name=self.request.name,
            colour=request.colour,
            method=method_of(self.request.adapter).title,
            rank=int(config.r),
            parameters=sum(
                tensor.numel()
                for tensor in adapters.weights(self.session.peft, self.adapter_id).values()
            ),
            base_name=facts.name,
            base_fingerprint=facts.fingerprint,
            created=request.created,
            run_id=self.run.id,
            data=self.request.data,
            state=state,
            steps=self.step,
            evaluation_before=self.evaluation_before,
            evaluation=self.evaluation,
        )

    def _conclude(self, state: str, info: AdapterInfo, difference: float) -> RunResult:
        self._write_status(force=True)
        if state == "stopped":
            text = f"Stopped after step {self.step} of {self.total_steps}; everything is saved."
        else:
            text = f"Finished after {self.step} steps."
        self.events.write("stopped" if state == "stopped" else "finished", step=self.step, text=text)
        self.run.update(
            state=state,
            peak_memory_bytes=self.run_peak,
            message=text,
            cure="Resume goes on from there." if state == "stopped" else "",
        )
        return RunResult(
            run_id=self.run.id,
            adapter=info.name,
            state="stopped" if state == "stopped" else "finished",
            steps=self.step,
            total_steps=self.total_steps,
            first_loss=self.losses[0] if self.losses else None,
            final_loss=self.losses[-1] if self.losses else None,
            tokens_per_second=self.tokens_per_second,
            seconds=self.trained_seconds,
            peak_memory_bytes=self.run_peak,
            precision=self.precision,
            precision_reason=self.reason,
            evaluation_before=self.evaluation_before,
            evaluation=self.evaluation,
            adapter_path=str(self.session.library.folder(self.adapter_id)),
            max_difference=difference,
        )


def total_steps(train: Train, packs: int) -> int:
    """Return how many corrections a run makes."""
    whole = -(-packs // train.accumulation)
    return min(whole, train.max_steps) if train.max_steps else whole


def _record_failure(run: Run, events: EventWriter, error: WorkbenchError) -> None:
    """Write down why a run ended, as well as a full disk allows."""
    state = "stopped" if isinstance(error, Stopped) else "failed"
    try:
        run.update(state=state, message=error.what, cure=error.cure)
        events.write("stopped" if state == "stopped" else "failed", text=str(error))
        with run.log.open("a", encoding="utf-8") as file:
            file.write(f"{error}\n{error.details}\n")
    except (OSError, WorkbenchError) as second:
        log.error("The run's failure could not be written down: %s", second)


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what libraries print, down to file descriptor 2, to the run's log."""
    saved = os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
