"""One segment of a training run: from its start, or from a checkpoint, to its end.

Order: prepare (data, targets, adapter), evaluate the base, train, publish and verify. Other
adapters are inactive meanwhile; the previous active set is always restored.
"""

from contextlib import suppress
from functools import partial

from peft import PeftModel

from backend.engine.adapters import saving
from backend.engine.core import memory
from backend.engine.core.error_translation import translate
from backend.engine.core.job_control import Control
from backend.engine.core.process_group import Ranks
from backend.engine.data.token_cache import TokenStore
from backend.engine.methods import peft_io
from backend.engine.models import quantization
from backend.engine.runs import (
    early_stopping,
    heldout_samples,
    initial_adapter,
    memory_prediction,
    neutral_text,
    pausing,
    run_data,
    run_result,
    same_examples,
    test_questions,
)
from backend.engine.runs.oom_recovery import explained, train_or_rescue
from backend.engine.runs.run_log import RunLog
from backend.engine.runs.run_memory import RunMemory
from backend.engine.session import Session
from backend.engine.steps import step_loss
from backend.engine.steps.layouts import RunLayout
from backend.engine.training import divergence, extension
from backend.engine.training.precision_choice import Timings
from backend.engine.training.trainer import AdapterTrainer, RunCallback
from backend.engine.training.trainer_arguments import arguments
from backend.errors import Diverged, OutOfMemory, WorkbenchError
from backend.results import AdapterInfo, Evaluation, RunResult
from backend.runs import adjustments
from backend.settings import Settings


class Segment:
    """One segment of a run, on the loaded base; `execute` runs it once."""

    def __init__(
        self,
        session: Session,
        log: RunLog,
        control: Control,
        settings: Settings,
        ranks: Ranks,
        *,
        resume: bool,
        extra_epochs: float,
        changed_data: bool,
    ) -> None:
        self.session = session
        self.log = log
        self.run = log.run
        base, asked = session.base, self.run.request.train
        self.request = step_loss.supported(asked.with_rate(base.facts.parameters), base.model)
        self.adapter_id = self.run.request.adapter_id
        self.control, self.settings, self.ranks = control, settings, ranks
        self.before = self.run.status().extended(extra_epochs)
        self.checkpoint = self.run.latest_checkpoint() if resume else None
        self.started = int(self.checkpoint.name.rsplit("-", 1)[1]) if self.checkpoint else 0
        self.changed_data = changed_data
        self.layout = RunLayout(base, self.before, self.checkpoint, ranks)
        self.evaluation_before: Evaluation | None = self.before.evaluation_before
        self.evaluation: Evaluation | None = None
        self.needed: memory_prediction.Prediction | None = None

    def execute(self) -> RunResult:
        """Run the whole segment; see the module's docstring for the order."""
        base = self.session.base
        self.control.progress("Reading the examples", force=True)
        self.taken = RunMemory(self.session)
        self._prepare_data()
        active = list(self.session.active_ids)
        self.norms = quantization.narrow_norms(base.model)
        try:
            with quantization.prepared(base.model) as self.preparation:
                peft = initial_adapter.put_on(self.session, self.run, self.checkpoint)
                saving.require_readable(self.session, self.adapter_id)
                checkpointing = self._choose_checkpointing(peft)
                with self.layout.mode(checkpointing=checkpointing) as self.mode:
                    self._learn(peft)
            self.peak = self.taken.peak
            self.session.settle()
            self.control.progress("Saving and verifying", 1.0, force=True)
            at_end = self.log.step >= self.total_steps
            state = "finished" if at_end or self.early else "stopped"
            self._take_best(peft)
            info = self._info(peft, state)
            difference = 0.0
            if self.ranks.leads:
                heldout_samples.note(self.session, self.log, self.held_out.documents, self.control)
                how = neutral_text.How(self.precision, self.layout.used)
                neutral_text.measure(self.session, self.log, self.control, how)
                difference = run_result.publish(self.session, self.run, info)
        except BaseException as error:
            self.session.drop(self.adapter_id)
            with suppress(WorkbenchError, RuntimeError, MemoryError, OSError):
                self.session.bring_back(active)
            if isinstance(known := translate(error), OutOfMemory) and self.needed:
                raise explained(known, self.run, self.packs, self.needed, self.taken.free) from None
            raise
        finally:
            self.session.settle()
            self.taken.close()
        self.session.bring_back(active)  # the adapter of a resumed run may have been active
        self.log.conclude(state, peak_memory=self.peak, early=self.early, kept=self.guards.kept)
        return self._result(info, difference)

    # -- preparation -----------------------------------------------------------------------------

    def _prepare_data(self) -> None:
        train = self.request.model_copy(update={"date": self.run.request.dated.date})
        self.data = run_data.prepare(
            train,
            self.before,
            self.session.base,
            store=TokenStore(self.settings.tokens_dir),
            control=self.control,
            step=self.started,
            changed_data=self.changed_data,
            layout=self.layout.planned,
        )
        self.plan, self.held_out = self.data.plan, self.data.held_out
        self.held_out.alone = self.layout.alone
        self.planned_steps = self.plan.total_steps
        self._plan_steps(adjustments.read(self.run.folder))

    def _plan_steps(self, changes: list[adjustments.Adjustment]) -> None:
        """Plan as many steps as the run makes with these changes, and the packs for them."""
        self.changes = changes
        own = test_questions.own_prompts(self.request.data) if self.request.watch is None else []
        self.prompts = adjustments.watched(self.request.watch or own, changes)
        self.total_steps = adjustments.total_steps(self.planned_steps, changes)
        self.packs = extension.enough(
            self.plan,
            self.request,
            self.before.extra_epochs,
            self.total_steps,
            self.data.restart,
        )
        self.packs.alone = self.layout.alone

    # -- training --------------------------------------------------------------------------------

    def _learn(self, peft: PeftModel) -> None:
        peft.set_adapter(self.adapter_id)
        with memory.exact_allocation(self._predict_memory(peft).is_tight):
            self._choose_precision(peft)
            if self.layout.prove(peft, self.precision, self.mode):
                self._prepare_data()
            self._predict_memory(peft)
            self.taken.tidy()
            self._go(peft)

    def _go(self, peft: PeftModel) -> None:
        self.log.begin(
            step=self.started,
            total_steps=self.total_steps,
            seconds=self.before.trained_seconds if self.checkpoint else 0.0,
            resumed=self.checkpoint is not None,
            examples=self.data.record.mark.examples,
            data=self.data.record,
            extra_epochs=self.before.extra_epochs,
            layout=self.layout.planned,
            layout_note=self.layout.words(self.packs),
        )
        if self.data.changed:
            self.log.data_changed(self.data.changed)
        if self.checkpoint is None:
            same_examples.note_date(self.log, self.session.base.tokenizer)
        extended = self.before.extra_epochs
        if extended and self.started == self.plan.stretches[-1].start:
            self.log.notice(extension.words(self.plan.stretches[-1], extended[-1]))
        if self.preparation:
            self.log.prepared(self.preparation)
        if self.ranks.several:
            self.log.noted(self.ranks.describe())
        self._evaluate_base(peft)
        self.guards = early_stopping.Guards(
            self.request,
            self.log,
            lambda folder: peft_io.write(peft, self.adapter_id, folder),
            restart=self.data.restart,
        )
        half = self._info(peft, pausing.HALF_TRAINED)
        around = partial(pausing.aside, self.session, half, self.mode, self.norms)
        self.watch = test_questions.Watch(
            self.session, self.log, self.control, adapter_id=self.adapter_id, around=around
        )
        self.watch.choose(self.prompts)
        self.deadline = pausing.deadline(self.settings)
        self._run_or_read(self._trainer(peft))
        while self._adjusted():
            self.checkpoint = self.run.latest_checkpoint()
            self._run_or_read(self._trainer(peft))
        in_time = self.log.step >= self.total_steps or self.control.stop_requested
        self.early = "" if in_time else self.guards.verdict
        if not self.went_on:
            self._evaluate(self.log.step, noted=False)
        elif self.log.step not in early_stopping.tests_at(self.total_steps):
            self._look(self.log.step)

    def _evaluate_base(self, peft: PeftModel) -> None:
        """Evaluate the base alone before the first step, and on other held-out examples again."""
        restart = self.data.restart if self.data.changed else None
        anew = restart is not None and restart.is_tested_anew
        if self.checkpoint is not None and not anew:
            return
        self.session.activate([])
        self._evaluate(0, noted=self.checkpoint is None)
        self.evaluation_before = self.evaluation
        if self.checkpoint is not None and self.ranks.leads:
            self.log.base_evaluated(self.evaluation)
        peft.set_adapter(self.adapter_id)

    def _adjusted(self) -> bool:
        """Apply the settings changed during the run; returns whether it has to continue with them.

        It continues from the checkpoint of this step, as a resumed run would.
        """
        asked = self.control.take_changes()
        for wanted in asked:
            change = adjustments.Adjustment(step=self.log.step, **wanted)
            self._plan_steps(adjustments.add(self.run.folder, change))
            text = adjustments.words(change, self.request.scheduler, self.total_steps)
            self.log.adjusted(change, total_steps=self.total_steps, text=text)
            if change.watch is not None:
                self.watch.choose(change.watch)
                self.watch.look(self.log.step)
        goes_on = self.log.step < self.total_steps and not self.control.stop_requested
        return bool(asked) and goes_on and not self.guards.verdict

    def _run_or_read(self, trainer: AdapterTrainer) -> None:
        """Train; a run that was interrupted after its last step only reads its adapter back.

        Trainer (Transformers 5.23) checks whether it is done after a step, so it would do one more.
        """
        self.went_on = self.log.step < self.total_steps and not self.guards.verdict
        if self.went_on or self.checkpoint is None:
            train_or_rescue(trainer, self.checkpoint, self.log, self.ranks)
        else:
            trainer.read_checkpoint(self.checkpoint)

    def _choose_precision(self, peft: PeftModel) -> None:
        """Choose the precision by measuring; a resumed run keeps the one it started with."""
        chosen = self.before.precision, "as this run started"
        if self.checkpoint is None or not self.before.precision:
            known, base = Timings(self.settings.timings_file), self.session.base
            chosen = self.ranks.agree(lambda: known.choose(self.request, base, peft, self.packs))
        self.precision, self.reason = chosen
        self.mode.free_casts()
        self.log.precision(self.precision, self.reason)

    def _choose_checkpointing(self, peft: PeftModel) -> bool:
        """Decide on gradient checkpointing; what the estimate chose is in the preparation text."""
        self.precision = "fp32"  # for a first prediction, because timing a step takes memory, too
        needed = self._predict_memory(peft)
        chosen = self.ranks.agree(lambda: needed.setup.checkpointing)
        self.preparation = quantization.add_checkpointing(
            self.preparation, chosen, asked=self.request.gradient_checkpointing
        )
        return chosen

    def _predict_memory(self, peft: PeftModel) -> memory_prediction.Prediction:
        """Predict the run's memory and write it to the status."""
        self.needed = memory_prediction.predict(
            self.session,
            self.request,
            self.packs,
            config=peft.peft_config[self.adapter_id],
            learned_share=self.data.learned_share,
            computed=self.precision,
            free=self.taken.free,
        )
        self.run.update(**self.needed.noted(self.session.base.facts))
        self.taken.expect(self.precision)
        return self.needed

    def _trainer(self, peft: PeftModel) -> AdapterTrainer:
        callback = RunCallback(
            self.control,
            on_step=self._on_step,
            on_step_over=self.taken.between_steps(self.packs, self.request, self.log.step),
            on_save=self.log.saved,
            evaluate_at=early_stopping.tests_at(self.total_steps),
            on_evaluate=self._look,
            on_pause=lambda: self._pause(trainer),
            is_over=lambda: bool(self.guards.verdict) or pausing.is_over(self.deadline),
            ranks=self.ranks,
        )
        trainer = self.trainer = AdapterTrainer(
            model=peft,
            base=self.session.base,
            adapter_id=self.adapter_id,
            packs=self.packs,
            request=self.request,
            stretches=self.plan.stretches,
            precision=self.precision,
            control=self.control,
            arguments=arguments(
                self.request,
                folder=self.run.checkpoints,
                total_steps=self.planned_steps,
                device=self.session.base.device,
            ),
            callbacks=[callback],
            total_steps=self.total_steps,
            changes=self.changes,
            ranks=self.ranks,
        )
        return trainer

    def _pause(self, trainer: AdapterTrainer) -> None:
        """Pause until the run is resumed or stopped; the model can answer meanwhile."""
        pausing.hold(
            self.control,
            self.log,
            info=self._info(trainer.peft, pausing.HALF_TRAINED),
            save=trainer.save_now,
            look=self.watch.look,
            around=lambda info: pausing.aside(self.session, info, self.mode, self.norms),
            deadline=self.deadline,
        )

    def _look(self, step: int) -> None:
        """Evaluate the adapter, and let it answer the test questions."""
        self._evaluate(step)
        if self.evaluation is not None:
            planned = step in early_stopping.tests_at(self.total_steps)
            self.guards.tested(step, self.evaluation, planned=planned)
        if self.ranks.leads:
            self.watch.look(step)

    def _evaluate(self, step: int, *, noted: bool = True) -> None:
        if len(self.held_out) and self.ranks.leads:
            model, device = self.session.model, self.session.base.device
            found = step_loss.evaluate(model, self.held_out, device, self.precision)
            if not self.data.has_answers:
                found = found.model_copy(update={"exact_match": None})
            self.evaluation = found
            divergence.require_finite_test(step, self.evaluation.loss, self.run.checkpoints)
            if noted:
                self.log.evaluated(step, self.evaluation)

    def _on_step(self, step: int, logs: dict[str, float], seconds: float) -> None:
        count = self.packs.tokens_of_step(step, self.request.accumulation)
        self.log.stepped(step, logs, tokens=count, seconds=seconds)
        try:
            self.guards.stepped(step, logs["loss"])
        except Diverged:
            if self.ranks.leads:
                early_stopping.drop_after(self.run.checkpoints, self.guards.good_until or 0)
            raise
        self.trainer.good_until = self.guards.good_until

    # -- the end ---------------------------------------------------------------------------------

    def _take_best(self, peft: PeftModel) -> None:
        """Replace the last state by the best one, if that is wanted."""
        self.step = self.log.step
        if (best := self.guards.take_best(peft, self.adapter_id)) is not None:
            self.step, self.evaluation = best.step, best.evaluation
            self.log.kept(best.step, best.evaluation)

    def _info(self, peft: PeftModel, state: str) -> AdapterInfo:
        return run_result.adapter_info(
            self.session,
            self.run,
            peft,
            state=state,
            steps=self.log.step if state == pausing.HALF_TRAINED else self.step,
            evaluations=(self.evaluation_before, self.evaluation),
        )

    def _result(self, info: AdapterInfo, difference: float) -> RunResult:
        return run_result.run_result(
            self.run,
            self.log,
            info,
            adapter_step=self.step,
            total_steps=self.total_steps,
            peak_memory_bytes=self.peak,
            precision=(self.precision, self.reason),
            adapter_path=str(self.session.library.folder(self.adapter_id)),
            max_difference=difference,
            preparation=self.preparation,
            layout=self.layout.used,
        )
