"""Trainer's arguments for a process that computes on one device only, that of its base."""

from typing import Any

import torch
from transformers import TrainingArguments


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
