"""The training loop: `transformers.Trainer` with our loss, our checkpoints and our job control.

Trainer provides the loop, optimiser, schedules, random state and resuming. Packs come in the order
of the plan, so a resumed run skips as many as it has seen. Knows nothing of events or the library.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from backend.engine.core import devices
from backend.engine.core.job_control import Control
from backend.engine.core.process_group import ALONE, Ranks
from backend.engine.methods import peft_io
from backend.engine.models.loading import Base
from backend.engine.training import (
    divergence,
    extension,
    loss_scaling,
    step_loss,
    trainer_arguments,
)
from backend.engine.training.extension import Stretch
from backend.engine.training.packing import Packs
from backend.files.atomic_files import disk_error, remove_folder, sync_folder
from backend.requests import Train
from backend.runs import adjustments
from backend.runs.adjustments import Adjustment

KEPT_CHECKPOINTS = 2
GPU_RANDOM_STATE = "gpu_random_state.pth"


class AdapterTrainer(Trainer):
    """Trains one adapter of a model that may hold others."""

    # `compute_loss` divides by the tokens with loss of the whole step. Where a model says
    # `accepts_loss_kwargs = False`, Transformers 5.23 would divide by `accumulation` once more.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: PeftModel,
        base: Base,
        adapter_id: str,
        packs: Packs,
        request: Train,
        stretches: list[Stretch],
        precision: str,
        control: Control,
        arguments: TrainingArguments,
        callbacks: list[TrainerCallback],
        total_steps: int,
        changes: list[Adjustment],
        ranks: Ranks = ALONE,
    ) -> None:
        self._base = base
        self._adapter_id = adapter_id
        self._precision = precision
        self._request = request
        self._stretches = stretches
        self._job = control
        self._planned_steps = int(arguments.max_steps)
        self._changes = changes
        arguments.max_steps = total_steps
        self._ranks = ranks
        self._staging: Path | None = None
        self._unseen = torch.zeros((), device=base.device)
        self.broke_between_corrections = False
        self.good_until: int | None = None
        """The last step before the loss began to diverge; the checkpoint before it is kept, too."""
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=packs,
            data_collator=_only_item,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # the run's events replace it
        if precision == "fp16":
            loss_scaling.install(self.accelerator, base.device)
        if ranks.several:
            _leave_frozen_alone(model)

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return self._base.device

    @property
    def peft(self) -> PeftModel:
        """The PEFT model, without DistributedDataParallel around it."""
        return _unwrap(self.model)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: step_loss.Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return a pack's summed loss, (), divided by the tokens with loss of the whole step."""
        opened = step_loss.autocast(self._base.device, self._precision)
        total = step_loss.loss_sum(model, inputs, opened)
        loss = total / (num_items_in_batch or len(inputs["labels"]))
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self._job.check_abort()
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except (RuntimeError, MemoryError):
            self.broke_between_corrections = True  # the weights are still those of the last step
            raise
        seen = self._seen_by_all(loss)
        folder = Path(str(self.args.output_dir))
        divergence.require_finite_step(self.state.global_step + 1, seen.item(), folder)
        return loss

    def _seen_by_all(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of all ranks, so that a loss that is not finite ends all of them."""
        if not self._ranks.several:
            return loss
        self._unseen = self._unseen + loss.detach()
        if not self.accelerator.sync_gradients:
            return self._unseen.new_zeros(())
        seen, self._unseen = self._ranks.mean(self._unseen), torch.zeros((), device=loss.device)
        return seen

    def _clip_grad_norm(self, model: Any) -> Any:
        loss_scaling.unscale(self.accelerator, self.optimizer)
        return super()._clip_grad_norm(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return self._ranks.sum(sum(len(batch["labels"]) for batch in batch_samples))

    def store_flos(self) -> None:
        """Do nothing: Trainer would ask every process, also one that has ended."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = super().create_optimizer(model)
        trainer_arguments.forget_base()
        return found

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: Trainer would go through all modules in each step."""
        return 0

    # The learning rate: as planned, again for each extension, and with changes made during the run.

    def create_scheduler(
        self, num_training_steps: int, optimizer: Any = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        known = getattr(self, "lr_scheduler", None)
        if len(self._stretches) > 1 and known is None:
            wanted = optimizer or self.optimizer
            self.lr_scheduler = extension.schedule(self._request, wanted, self._stretches)
        scheduler: Any = super().create_scheduler(self._planned_steps, optimizer)
        if self._changes:
            last = self._stretches[-1]
            plan = adjustments.Plan(
                rate=scheduler.lr_lambdas[0],
                scheduler=self._request.scheduler,
                peak=1.0,
                warmup_steps=last.start + round(self._request.warmup * last.steps),
                total_steps=self._planned_steps,
            )
            changes = adjustments.relative(self._changes, float(self.args.learning_rate))
            rate = adjustments.rates(plan, changes)
            scheduler.lr_lambdas = [lambda step: rate(step) for _ in scheduler.lr_lambdas]
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both; the next learning rate is the current plan's, not the checkpoint's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            scheduler: Any = self.lr_scheduler
            pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            rates = [base * rate(scheduler.last_epoch) for base, rate in pairs]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates

    # Checkpoints: only this run's adapter, written to a temporary folder and then renamed.

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self._ranks.leads:
            return
        folder = Path(str(self.args.output_dir))
        self._staging = folder / ".partial"
        try:
            shutil.rmtree(self._staging, ignore_errors=True)
            super()._save_checkpoint(model, trial)
            sync_folder(self._staging)
            for written in self._staging.glob("checkpoint-*"):
                remove_folder(folder / written.name)
                written.replace(folder / written.name)
        except OSError as error:
            raise disk_error(error, folder / f"checkpoint-{self.state.global_step}") from error
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        _keep_newest(folder, self.good_until)

    def save_last_step(self) -> int:
        """Save the last whole step after an interrupted one; return that step, or 0."""
        step = int(self.state.global_step)
        if not self.broke_between_corrections or step == 0:
            return 0
        self._save_checkpoint(self.model, None)
        return step

    def save_now(self) -> int:
        """Save between two steps, if this step is not saved yet; return the step."""
        step = int(self.state.global_step)
        if not (Path(str(self.args.output_dir)) / f"checkpoint-{step}").is_dir():
            self._save_checkpoint(self.model, None)
        return step

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write this run's adapter; Trainer's own code would write every adapter of the model."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        peft_io.write(_unwrap(self.model), self._adapter_id, folder)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state, also that of GPUs that Trainer leaves out: Intel's and Apple's."""
        super()._save_rng_state(output_dir)
        if (state := devices.random_state(self._base.device)) is not None:
            torch.save(state, Path(output_dir) / GPU_RANDOM_STATE)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random state; with several processes each step is seeded instead."""
        if self._ranks.several or checkpoint is None:
            return
        super()._load_rng_state(checkpoint)
        file = Path(checkpoint) / GPU_RANDOM_STATE
        if file.is_file():
            devices.set_random_state(self._base.device, torch.load(file, weights_only=True))

    def read_checkpoint(self, checkpoint: Path) -> None:
        """Load the adapter of a checkpoint, without training."""
        self._load_from_checkpoint(str(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load this run's adapter; Trainer's own code would load other adapters, too."""
        tensors = load_file(Path(resume_from_checkpoint) / peft_io.WEIGHTS)
        set_peft_model_state_dict(_unwrap(self.model), tensors, adapter_name=self._adapter_id)


class RunCallback(TrainerCallback):
    """Times steps and reports each logged one to the run; a stop ends with a saved checkpoint."""

    def __init__(
        self,
        control: Control,
        *,
        on_step: Callable[[int, dict[str, float], float], None],
        on_step_over: Callable[[], None],
        on_save: Callable[[int], None],
        evaluate_at: set[int],
        on_evaluate: Callable[[int], None],
        on_pause: Callable[[], None],
        is_over: Callable[[], bool],
        ranks: Ranks = ALONE,
    ) -> None:
        self._job = control
        self._ranks = ranks
        self._on_step = on_step
        self._on_step_over = on_step_over
        self._on_save = on_save
        self._evaluate_at = evaluate_at
        self._on_evaluate = on_evaluate
        self._on_pause = on_pause
        self._is_over = is_over
        self._began = 0.0
        self._seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()
        self._ranks.seed_step(args.seed, state.global_step)

    def on_pre_optimizer_step(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Raise where gradients are not finite: that can happen with a finite loss."""
        if loss_scaling.may_leave_out(optimizer):
            return
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        if grads and not torch.stack(torch._foreach_norm(grads)).isfinite().all():
            step = state.global_step + 1
            what = f"The gradients of step {step} are not finite numbers."
            raise divergence.diverged(what, Path(str(args.output_dir)))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        devices.synchronize(args.device)
        self._on_step_over()
        self._seconds = time.perf_counter() - self._began
        self._follow_commands(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._on_step(state.global_step, logs, self._seconds)
            if state.global_step in self._evaluate_at:
                self._on_evaluate(state.global_step)
                self._follow_commands(control)
            if self._job.pause_requested:  # a stop in the pause still ends the run at this step
                self._on_pause()
                self._follow_commands(control)

    def _follow_commands(self, control: Any) -> None:
        """Follow the commands received meanwhile: save a checkpoint, or end with one."""
        ends = self._job.stop_requested or self._is_over() or self._job.changes_wait
        if self._ranks.any(ends):
            control.should_training_stop = True  # after changed settings the run continues here
            control.should_save = True
        elif self._ranks.any(self._job.take_save()):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_save(state.global_step)


def _only_item(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the only item: a pack is already a batch."""
    return items[0]


def _unwrap(model: Any) -> PeftModel:
    inner: PeftModel = getattr(model, "module", model)
    return inner


def _leave_frozen_alone(model: PeftModel) -> None:
    """Keep DistributedDataParallel from broadcasting the base: every process has loaded it."""
    frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
    buffers = [name for name, _ in model.named_buffers()]  # a step changes none of them
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen + buffers)


def _keep_newest(folder: Path, good_until: int | None) -> None:
    found = {int(p.name.rsplit("-", 1)[1]): p for p in folder.glob("checkpoint-*")}
    kept = sorted(found)[-KEPT_CHECKPOINTS:]
    if good_until is not None:
        kept += [max((step for step in found if step <= good_until), default=0)]
    for old in found.keys() - set(kept):
        remove_folder(found[old])
