"""A training run from its folder to its adapter in the library, and back out of every failure.

Prepare (data, targets, adapter) -> measure the base -> train -> publish and verify. Other adapters
are off meanwhile; the active set from before returns whatever happens.
"""

import time

import torch
from peft import LoraConfig, PeftModel

from backend.engine import (
    adapters,
    attention,
    data,
    estimate,
    memory,
    packing,
    quantization,
    saving,
    steps,
    tokens,
)
from backend.engine.control import Control
from backend.engine.failures import translate
from backend.engine.precision import Timings
from backend.engine.ranks import ALONE, Ranks
from backend.engine.run_log import RunLog, output_to
from backend.engine.session import Session
from backend.engine.shortage import out_of_memory, rescue
from backend.engine.trainer import AdapterTrainer, RunCallback, arguments
from backend.errors import OutOfMemory
from backend.methods import method_of
from backend.requests import Train
from backend.results import AdapterInfo, Evaluation, RunResult
from backend.runs import Run
from backend.settings import Settings

EVALUATIONS = 8
EVALUATED_EXAMPLES = 200


def train(
    session: Session,
    run: Run,
    control: Control,
    settings: Settings,
    *,
    resume: bool = False,
    ranks: Ranks = ALONE,
) -> RunResult:
    """Train a run's adapter, or go on from its last checkpoint; the run folder tells the story.

    A failure leaves the session as it was and the run `failed` with its reason. Each of several
    processes calls this with its own `ranks`; the first one writes for all.
    """
    run.claim(launched=ranks.launched)
    log = RunLog(run, control)
    try:
        with output_to(run.log):
            return _Training(session, log, control, settings, ranks, resume=resume).execute()
    except BaseException as error:
        known = ranks.explained(error, run)
        log.failed(translate(known))
        if known is not error:
            raise known from error
        raise
    finally:
        log.close()


def total_steps(request: Train, packs: int) -> int:
    """Return how many corrections a run makes."""
    whole = -(-packs // request.accumulation)
    return min(whole, request.max_steps) if request.max_steps else whole


class _Training:
    """One sitting of a run: from its start, or from a checkpoint, to its end."""

    def __init__(
        self,
        session: Session,
        log: RunLog,
        control: Control,
        settings: Settings,
        ranks: Ranks,
        *,
        resume: bool,
    ) -> None:
        self.session = session
        self.log = log
        self.run = log.run
        self.request: Train = self.run.request.train
        self.adapter_id = self.run.request.adapter_id
        self.control = control
        self.settings = settings
        self.ranks = ranks
        self.timings = Timings(settings.timings_file)
        self.before = self.run.status()
        self.checkpoint = self.run.latest_checkpoint() if resume else None
        self.evaluation_before: Evaluation | None = self.before.evaluation_before
        self.evaluation: Evaluation | None = None
        self.needed: tuple[estimate.Shape, estimate.Setup] | None = None

    def execute(self) -> RunResult:
        """Do the whole sitting; see the module's docstring for the order."""
        base = self.session.base
        self.control.progress("Reading the examples", force=True)
        resident = memory.resident(base.device)
        self.free = memory.available(base.device)
        memory.reset_peak(base.device)
        self._prepare_data()
        try:
            with quantization.prepared(base.model) as self.preparation:
                peft = self._prepare_adapter()
                with steps.step_mode(base, checkpointing=self.request.gradient_checkpointing):
                    self._learn(peft)
            self.peak = max(memory.peak(base.device) - resident, 0)
            self.session.settle()
            self.control.progress("Saving and reading back", 1.0, force=True)
            state = "finished" if self.log.step >= self.total_steps else "stopped"
            info = self._info(peft, state)
            difference = saving.publish(self.session, info) if self.ranks.leads else 0.0
        except BaseException as error:
            self.session.drop(self.adapter_id)
            if isinstance(known := translate(error), OutOfMemory) and self.needed:
                raise self._explained(known) from None
            raise
        finally:
            self.session.settle()
        self.log.conclude(state, peak_memory=self.peak)
        return self._result(info, difference)

    # -- preparation -----------------------------------------------------------------------------

    def _prepare_data(self) -> None:
        request, base = self.request, self.session.base
        source = data.read(request.data, eval_share=request.eval_share, seed=request.seed)
        context = base.facts.context_length
        longest = min(request.longest, context) if context else request.longest
        corpus = tokens.tokenise(source, base.tokenizer, max_length=longest)
        self.packs = packing.training_packs(corpus.train, request)
        self.learned_share = corpus.stats.learned_tokens / max(corpus.stats.tokens, 1)
        self.held_out = packing.evaluation_packs(
            corpus.held_out[:EVALUATED_EXAMPLES], request.tokens_per_step
        )
        self.total_steps = total_steps(request, len(self.packs))

    def _prepare_adapter(self) -> PeftModel:
        """Put the run's adapter on the model, not active yet."""
        session, start_from = self.session, self.request.start_from
        config = self._config()
        session.drop(self.adapter_id)  # a stopped run's adapter, about to be trained on
        torch.manual_seed(self.request.seed)
        peft = session.add(self.adapter_id, adapters.trainable(config))
        if start_from is not None and self.checkpoint is None:
            adapters.copy_weights(peft, session.library.get(start_from).id, self.adapter_id)
        return peft

    def _config(self) -> LoraConfig:
        session, request = self.session, self.request
        if self.checkpoint is not None:
            return adapters.read_config(self.checkpoint)
        if request.start_from is not None:
            start = session.library.get(request.start_from)
            session.ensure_loaded(start)
            return adapters.read_config(session.library.folder(start.id))
        return adapters.configure(
            request.adapter, session.layers(), session.base.model.name_or_path
        )

    # -- learning --------------------------------------------------------------------------------

    def _learn(self, peft: PeftModel) -> None:
        checkpoint = self.checkpoint
        started = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
        steps.require_isolation(self.session.base, sorted(self.packs.documents, key=len)[:3])
        peft.set_adapter(self.adapter_id)
        self.precision = "fp32"  # for a first prediction: timing a step takes memory, too
        with memory.exact_allocation(self._predict_memory(peft)):
            self._choose_precision(peft)
            self._predict_memory(peft)
            self._go(peft, started)

    def _go(self, peft: PeftModel, started: int) -> None:
        checkpoint = self.checkpoint
        self.log.begin(
            step=started,
            total_steps=self.total_steps,
            seconds=self.before.trained_seconds if checkpoint else 0.0,
            resumed=checkpoint is not None,
        )
        if self.preparation:
            self.log.prepared(self.preparation)
        if self.ranks.several:
            self.log.noted(self.ranks.describe())
        if checkpoint is None:
            self.session.activate([])  # what the base alone makes of the held-out examples
            self._evaluate(0)
            self.evaluation_before = self.evaluation
            peft.set_adapter(self.adapter_id)
        trainer = self._trainer(peft)
        self._run_trainer(trainer)
        if self.log.step not in self._evaluate_at():
            self._evaluate(self.log.step)

    def _run_trainer(self, trainer: AdapterTrainer) -> None:
        checkpoint = self.checkpoint
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except (RuntimeError, MemoryError) as error:
            lost = self.ranks.lost(error)
            if saved := rescue(trainer, error, self.session.base.device, lost=lost):
                self.log.saved(saved)
            raise

    def _choose_precision(self, peft: PeftModel) -> None:
        """Measure, or keep what the run began with, so that a resumed run goes on the same."""
        self.precision, self.reason = self.ranks.agree(lambda: self._suitable_precision(peft))
        self.log.precision(self.precision, self.reason)

    def _suitable_precision(self, peft: PeftModel) -> tuple[str, str]:
        if self.checkpoint is not None and self.before.precision:
            return self.before.precision, "as this run began"
        return self.timings.choose(self.request, self.session.base, peft, self.packs)

    def _predict_memory(self, peft: PeftModel) -> bool:
        """Note what the run will take; returns whether that is tight for this machine."""
        facts = self.session.base.facts
        config = peft.peft_config[self.adapter_id]
        shape = estimate.Shape.of(self.session.base.model, facts.parameters)
        setup = estimate.Setup.of_run(
            self.request,
            facts,
            config=config,
            layers=list(shape.linear),
            largest_pack=max(map(self.packs.tokens, range(len(self.packs)))),
            learned_share=self.learned_share,
            computed=self.precision,
            attention_apart=attention.in_use(self.session.base.model),
        )
        setup = estimate.settle(shape, setup, self.free)
        self.needed = shape, setup
        self.run.update(
            predicted_memory_bytes=estimate.estimate(shape, setup).run,
            quantization=facts.quantization,
        )
        return setup.exact and setup.device == "cpu"

    def _explained(self, error: OutOfMemory) -> OutOfMemory:
        """Say what was too big, and note the settings that would fit."""
        assert self.needed is not None
        longest = max(map(len, self.packs.documents))
        explained, retry = out_of_memory(error, *self.needed, free=self.free, longest=longest)
        self.run.update(retry=retry or {})
        return explained

    def _trainer(self, peft: PeftModel) -> AdapterTrainer:
        callback = RunCallback(
            self.control,
            on_step=self._on_step,
            on_save=self.log.saved,
            evaluate_at=self._evaluate_at(),
            on_evaluate=self._evaluate,
            deadline=time.monotonic() + self.settings.demo_seconds if self.settings.demo else None,
            ranks=self.ranks,
        )
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
            callbacks=[callback],
            ranks=self.ranks,
        )

    def _evaluate_at(self) -> set[int]:
        """Spread a handful of evaluations evenly over the run, the last at its end."""
        every = max(1, self.total_steps // EVALUATIONS)
        return {*range(every, self.total_steps - every // 2, every), self.total_steps}

    def _evaluate(self, step: int) -> None:
        if len(self.held_out) and self.ranks.leads:
            self.evaluation = steps.evaluate(
                self.session.model, self.held_out, self.session.base.device, self.precision
            )
            self.log.evaluated(step, self.evaluation)

    def _on_step(self, step: int, logs: dict[str, float], seconds: float) -> None:
        first = (step - 1) * self.request.accumulation
        last = min(step * self.request.accumulation, len(self.packs))
        count = sum(self.packs.tokens(index) for index in range(first, last))
        self.log.stepped(step, logs, tokens=count, seconds=seconds)

    # -- the end ---------------------------------------------------------------------------------

    def _info(self, peft: PeftModel, state: str) -> AdapterInfo:
        facts, request = self.session.base.facts, self.run.request
        weights = adapters.weights(peft, self.adapter_id).values()
        config = peft.peft_config[self.adapter_id]
        before = self.session.library.by_id(self.adapter_id)
        return AdapterInfo(
            id=self.adapter_id,
            name=before.name if before else self.request.name,  # a stopped run's may be renamed
            colour=request.colour,
            method=method_of(self.request.adapter).title,
            rank=int(config.r),
            strength="on-off" if config.use_dora else "any",
            targets=tuple(sorted({str(name) for name in config.target_modules})),
            parameters=sum(tensor.numel() for tensor in weights),
            base_name=facts.name,
            base_fingerprint=facts.fingerprint,
            created=request.created,
            run_id=self.run.id,
            data=self.request.data,
            state=state,
            steps=self.log.step,
            evaluation_before=self.evaluation_before,
            evaluation=self.evaluation,
        )

    def _result(self, info: AdapterInfo, difference: float) -> RunResult:
        losses = self.log.losses
        return RunResult(
            run_id=self.run.id,
            adapter=info.name,
            state="finished" if info.state == "finished" else "stopped",
            steps=self.log.step,
            total_steps=self.total_steps,
            first_loss=losses[0] if losses else None,
            final_loss=losses[-1] if losses else None,
            tokens_per_second=self.log.tokens_per_second,
            seconds=self.log.trained_seconds,
            peak_memory_bytes=self.peak,
            precision=self.precision,
            precision_reason=self.reason,
            evaluation_before=self.evaluation_before,
            evaluation=self.evaluation,
            adapter_path=str(self.session.library.folder(self.adapter_id)),
            max_difference=difference,
            predicted_memory_bytes=self.run.status().predicted_memory_bytes,
            preparation=self.preparation,
        )
