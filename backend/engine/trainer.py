"""The training loop: `transformers.Trainer` with our loss, our checkpoints and our ears.

Trainer brings the loop, optimiser, schedules, random state and resuming. Packs come in the order of
the plan, so a resumed run skips as many as it has seen.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from backend.engine import adapters, extending, steps
from backend.engine.base_model import Base
from backend.engine.control import Control
from backend.engine.extending import Stretch
from backend.engine.packing import Packs
from backend.errors import Diverged
from backend.requests import Train
from backend.storage import disk_error

KEPT_CHECKPOINTS = 2


class AdapterTrainer(Trainer):
    """Trains one adapter of a model that may hold others."""

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
    ) -> None:
        self._base = base
        self._adapter_id = adapter_id
        self._precision = precision
        self._request = request
        self._stretches = stretches
        self._ears = control
        self._staging: Path | None = None
        self.broke_between_corrections = False
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=packs,
            data_collator=_only_item,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # the run's events say it better

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: steps.Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Sum over learned tokens / all learned tokens of the step, whatever packs they are in."""
        opened = steps.autocast(self._base.device, self._precision)
        total = steps.loss_sum(model, inputs, opened)
        loss = total / (num_items_in_batch or len(inputs["labels"]))
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self._ears.check_abort()
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except (RuntimeError, MemoryError):
            self.broke_between_corrections = True  # the weights are those of the last whole step
            raise
        if not torch.isfinite(loss):
            raise Diverged(
                f"The loss became {loss.item()} in step {self.state.global_step + 1}.",
                cure="The learning rate is too high for this data: try a quarter of it. "
                "The last checkpoint is from before and is good.",
            )
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return sum(len(batch["labels"]) for batch in batch_samples)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Let the schedule run once more over the steps of each extension."""
        if len(self._stretches) > 1 and getattr(self, "lr_scheduler", None) is None:
            wanted = optimizer or self.optimizer
            self.lr_scheduler = extending.schedule(self._request, wanted, self._stretches)
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Read both back; an extension begins at its own rate, not where the run's ended."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if len(self._stretches) > 1:
            factor = self.lr_scheduler.lr_lambdas[0](self.lr_scheduler.last_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    # Checkpoints: this run's adapter alone, written beside the old ones and then renamed.

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        self._staging = folder / ".partial"
        try:
            shutil.rmtree(self._staging, ignore_errors=True)
            super()._save_checkpoint(model, trial)
            for written in self._staging.glob("checkpoint-*"):
                shutil.rmtree(folder / written.name, ignore_errors=True)
                written.replace(folder / written.name)
        except OSError as error:
            raise disk_error(error, folder / f"checkpoint-{self.state.global_step}") from error
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        _keep_newest(folder)

    def save_last_step(self) -> int:
        """Save after a step broke off, as of the last whole one; returns that step, or 0."""
        step = int(self.state.global_step)
        if not self.broke_between_corrections or step == 0:
            return 0
        self._save_checkpoint(self.model, None)
        return step

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write this run's adapter; Trainer's own way would write every adapter of the model."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        adapters.write(_unwrap(self.model), self._adapter_id, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Read this run's adapter back; Trainer's own way would bring other adapters along."""
        tensors = load_file(Path(resume_from_checkpoint) / adapters.WEIGHTS)
        set_peft_model_state_dict(_unwrap(self.model), tensors, adapter_name=self._adapter_id)


class RunCallback(TrainerCallback):
    """Times steps and hands each logged one to the run; turns a stop into a saved end."""

    def __init__(
        self,
        control: Control,
        *,
        on_step: Callable[[int, dict[str, float], float], None],
        on_save: Callable[[int], None],
        evaluate_at: set[int],
        on_evaluate: Callable[[int], None],
        deadline: float | None,
    ) -> None:
        self._ears = control
        self._on_step = on_step
        self._on_save = on_save
        self._evaluate_at = evaluate_at
        self._on_evaluate = on_evaluate
        self._deadline = deadline
        self._began = 0.0
        self._seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps.synchronize(args.device)
        self._seconds = time.perf_counter() - self._began
        out_of_time = self._deadline is not None and time.monotonic() > self._deadline
        if self._ears.stop_requested or out_of_time:
            control.should_training_stop = True
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._on_step(state.global_step, logs, self._seconds)
            if state.global_step in self._evaluate_at:
                self._on_evaluate(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_save(state.global_step)


def arguments(train: Train, *, folder: Path, total_steps: int, device: str) -> TrainingArguments:
    """Translate a request into Trainer's arguments. Precision is not Trainer's business here."""
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=train.accumulation,
        max_steps=total_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=round(train.warmup * total_steps),
        weight_decay=train.weight_decay,
        max_grad_norm=1.0,
        seed=train.seed,
        bf16=False,
        fp16=False,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=save_interval(train, total_steps),
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
    )


def save_interval(train: Train, total_steps: int) -> int:
    """Return after how many steps to save: short runs more often, so that they can be resumed."""
    return min(train.save_every, max(5, total_steps // 5))


def _only_item(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A pack is a batch already."""
    return items[0]


def _unwrap(model: Any) -> PeftModel:
    inner: PeftModel = getattr(model, "module", model)
    return inner


def _keep_newest(folder: Path) -> None:
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
    for old in found[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old, ignore_errors=True)
