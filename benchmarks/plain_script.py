"""A peer: the `transformers.Trainer` + PEFT script that most people would write.

Eight examples a batch, padded to the longest of them; prompts masked; the model's own loss.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from benchmarks.speed import Speed, StepLog

BATCH = 8


def read_in_full(folder: Path) -> Any:
    """Read the model as most scripts do."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


class StepClock(TrainerCallback):
    """Times steps at the same two places as our own training does."""

    def __init__(self, precision: str) -> None:
        self.log = StepLog.empty(precision)
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize()  # ours waits there, too
        self.log.ended.append(time.perf_counter())
        self.log.seconds.append(self.log.ended[-1] - self._began)


def train_plainly(
    model_folder: Path,
    train: rq.Train,
    examples: list[Tokens],
    precision: str,
    *,
    grouped: bool = False,
    read: Callable[[Path], Any] = read_in_full,
    batch: int = BATCH,
    on_gpu: bool = False,
) -> Speed:
    """Train once and tell how fast it went, in useful tokens. `grouped`: like lengths together."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = get_peft_model(read(model_folder), lora_of(train))
    clock = StepClock(precision)
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)

    def counted(rows: list[dict[str, list[int]]]) -> Any:
        clock.log.tokens.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                **script_settings(folder, train, precision, batch=batch, on_gpu=on_gpu),
                train_sampling_strategy="group_by_length" if grouped else "random",
            ),
            train_dataset=[as_row(example) for example in examples],  # type: ignore[arg-type]
            data_collator=counted,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        output = trainer.train()
    clock.log.losses.append(output.training_loss)
    return clock.log.speed()


def lora_of(train: rq.Train) -> LoraConfig:
    """Return the adapter of a request, as a script configures it."""
    return LoraConfig(
        r=train.adapter.rank,
        lora_alpha=int(train.adapter.effective_alpha),
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def script_settings(
    folder: str, train: rq.Train, precision: str, *, batch: int, on_gpu: bool
) -> dict[str, Any]:
    """Return what such a script sets; the rest stays at Trainer's defaults."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "learning_rate": train.rate,
        "lr_scheduler_type": train.scheduler,
        "activation_checkpointing": train.gradient_checkpointing,
        "bf16": precision == "bf16",
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": train.seed,
    }


def as_row(example: Tokens) -> dict[str, list[int]]:
    """Return an example as Trainer wants it; what is not learned has the label -100."""
    labels = np.where(example.learned, example.ids, -100)
    return {
        "input_ids": example.ids.tolist(),
        "attention_mask": [1] * len(example),
        "labels": labels.tolist(),
    }
