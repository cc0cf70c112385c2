"""Devices: which ones this machine has, and what each kind can do.

A device is the processor ("cpu") or a GPU of the one kind that PyTorch finds here. Other modules
call this one instead of torch.cuda, so a new kind of GPU is added in this file alone. Memory is in
bytes. Knows nothing of models.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch

from backend.errors import Unsupported

GPUS = {"cuda": "NVIDIA GPU", "xpu": "Intel GPU", "mps": "Apple GPU"}
"""The supported kinds of GPU, by PyTorch's name. AMD's GPUs are "cuda", too."""
CPU = torch.device("cpu")
_CONNECTIONS = {"cuda": "nccl", "xpu": "xccl"}
_WITHOUT_BF16 = ("Apple M1",)
"""Apple's M1 GPUs have no bf16 and convert it; PyTorch 2.13 has no function to check this."""


def gpu() -> str:
    """Return the kind of GPU that PyTorch can use here; empty where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None and found.type in GPUS else ""


def choose(wanted: str) -> torch.device:
    """Return the device to compute on; raises Unsupported where this machine has none such."""
    here = gpu()
    if wanted == "auto":
        wanted = here or "cpu"
    if wanted == "cpu":
        return CPU
    if wanted != here:
        cure = f"Use {here} (the {GPUS[here]} of this machine) or cpu." if here else "Use cpu."
        raise Unsupported(f"This machine has no {GPUS[wanted]} that PyTorch can use.", cure=cure)
    # The GPU that this process took (`take`), in a run of several processes; else the first.
    return torch.device(here, torch.accelerator.current_device_index())


def is_gpu(device: torch.device) -> bool:
    """Tell whether a device is a GPU, with its own memory and random number generator."""
    return device.type != "cpu"


def computes_bf16(device: torch.device) -> bool:
    """Tell whether a device computes bf16 natively; others convert, which is slower than fp32.

    A GPU that this machine does not have counts as a current one, which does.
    """
    if not is_gpu(device) or device.type != gpu():
        return True
    if device.type == "mps":
        name = str(torch.backends.mps.get_name())
        recent = bool(torch.backends.mps.is_macos_or_newer(14, 0))
        return recent and not name.startswith(_WITHOUT_BF16)
    return bool(_module(device).is_bf16_supported(including_emulation=False))


def pins_memory(device: torch.device) -> bool:
    """Tell whether copies to a device can be asynchronous, from pinned memory."""
    return device.type in ("cuda", "xpu")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished all queued work, so that measured times are real."""
    if is_gpu(device):
        torch.accelerator.synchronize(device)


# -- several processes -----------------------------------------------------------------------------


def count() -> int:
    """Return how many GPUs this machine has."""
    return int(torch.accelerator.device_count()) if gpu() else 0


def connection(kind: str) -> str:
    """Return the `torch.distributed` backend for processes on this kind of device."""
    return _CONNECTIONS.get(kind, "gloo")


def take(number: int) -> None:
    """Let this process compute on one GPU of several; raises Unsupported where there is none."""
    have = count()
    if number >= have:
        gpus = "1 GPU" if have == 1 else f"{have} GPUs"
        raise Unsupported(
            f"This machine has {gpus}, which is not enough for process {number + 1} on it.",
            cure="Start no more processes on a machine than it has GPUs.",
        )
    torch.accelerator.set_device_index(number)


# -- a GPU's memory --------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int:
    """Return the bytes that a GPU has left for new tensors."""
    if device.type == "mps":  # a share of the machine's memory, which other programs use, too
        left = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return max(min(int(left), int(psutil.virtual_memory().available)), 0)
    return int(_module(device).mem_get_info(device)[0])


def used_bytes(device: torch.device) -> int:
    """Return the bytes that this process's tensors take on a GPU."""
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    return int(_module(device).memory_allocated(device))


def peak_bytes(device: torch.device) -> int:
    """Return the highest use in bytes since `reset_peak`.

    PyTorch 2.13 has no such counter for Apple's GPUs. There it is the memory allocated by the
    driver, which only grows until the cache is emptied.
    """
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(_module(device).max_memory_allocated(device))


def reset_peak(device: torch.device) -> None:
    """Start counting a GPU's highest use again."""
    if device.type == "mps":
        torch.mps.empty_cache()
        return
    _module(device).reset_peak_memory_stats(device)


def empty_cache(device: torch.device) -> None:
    """Give a GPU's freed memory back to other programs."""
    _module(device).empty_cache()


# -- random numbers --------------------------------------------------------------------------------


def random_state(device: torch.device) -> torch.Tensor | None:
    """Return the state of a GPU's random generator, a uint8 tensor on the CPU; None without GPU."""
    return _module(device).get_rng_state(device) if is_gpu(device) else None


def set_random_state(device: torch.device, state: torch.Tensor | None) -> None:
    """Set a GPU's random generator to a state that `random_state` returned."""
    if state is not None:
        _module(device).set_rng_state(state, device)


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Restore all random states afterwards: Python's, NumPy's and torch's."""
    before: tuple[Any, ...] = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    on_gpu = random_state(device)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        set_random_state(device, on_gpu)


def _module(device: torch.device) -> Any:
    """Return PyTorch's module for a kind of GPU, such as torch.cuda."""
    return torch.get_device_module(device)
