"""Trainer's arguments for a run: its settings, its optimiser, and one device only."""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.optim import GlobalOptimManager
from transformers import TrainingArguments

from backend.catalogue.learning_rate import schedule_name
from backend.engine.core import devices
from backend.requests import Train

OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}
"""Trainer's names of the optimisers that can be chosen."""
_UPDATE_8BIT = "bitsandbytes::optimizer_update_8bit_blockwise"


class OneDeviceArguments(TrainingArguments):
    """Keeps Trainer from using every GPU that it finds.

    Where one process sees several GPUs, Trainer wraps the model in `DataParallel` and moves it to
    the first of them (Transformers 5.23), whatever device it is on.
    """

    def __init__(self, *, base_device: torch.device, **options: Any) -> None:
        self._base_device = base_device
        super().__init__(use_cpu=base_device.type == "cpu", **options)

    @property
    def n_gpu(self) -> int:
        """1 where the base is on a GPU, else 0."""
        return int(self._base_device.type != "cpu")

    @property
    def device(self) -> torch.device:
        """The base's device; Trainer's own set-up, which connects processes, runs first."""
        before = super().device
        if before.type != "cpu" and before != self._base_device:
            torch.accelerator.set_device_index(self._base_device.index)
        return self._base_device


def arguments(
    train: Train, *, folder: Path, total_steps: int, device: torch.device | str
) -> TrainingArguments:
    """Translate a request into Trainer's arguments; the step itself sets the precision."""
    device = torch.device(device)
    return OneDeviceArguments(
        base_device=device,
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=train.accumulation // train.processes,
        max_steps=total_steps,
        learning_rate=train.rate,
        lr_scheduler_type=schedule_name(train.scheduler),
        warmup_steps=round(train.warmup * total_steps),
        optim=OPTIMIZERS[train.optimizer],
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
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=devices.pins_memory(device),
    )


def save_interval(train: Train, total_steps: int) -> int:
    """Return the steps between two checkpoints; short runs save more often."""
    return min(train.save_every, max(5, total_steps // 5))


def computes_8bit(device: torch.device) -> bool:
    """Tell whether bitsandbytes has an 8-bit optimiser for a kind of device; computes nothing."""
    key = torch._C._dispatch_key_for_device(device.type)
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(_UPDATE_8BIT, key))


def forget_base() -> None:
    """Empty the list of embeddings that Trainer has made for an 8-bit optimiser.

    bitsandbytes 0.50 keeps it for the whole process, so every base that was trained would stay in
    memory. It matters only where embeddings are trained as a whole, which an adapter does not do.
    """
    GlobalOptimManager.get_instance().module_weight_config_triple.clear()
