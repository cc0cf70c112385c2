"""What memory there is and was used, and a limit that makes running out an error, not a kill."""

import ctypes
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from backend.engine.core import devices
from backend.errors import OutOfMemory
from backend.sizes import size_text

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def _linked_libraries() -> Any:
    """Return the functions that are linked into this process; None where the system hides them."""
    try:
        return ctypes.CDLL(None)
    except TypeError:  # Windows, which has none of those that are used here either
        return None


_LINKED = _linked_libraries()
_TRIM = getattr(_LINKED, "malloc_trim", None)
_MALLOPT = getattr(_LINKED, "mallopt", None)
REUSES_BLOCKS = hasattr(_LINKED, "__TBB_malloc_proxy")
"""Whether this process has the allocator of `backend.service.allocator`."""
_CLEAN_ALL_BUFFERS = 0  # TBBMALLOC_CLEAN_ALL_BUFFERS of oneTBB's scalable_allocator.h
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_EXACT, _USUAL = 1024**2, 32 * 1024**2
LEAST_ROOM = 256 * 1024**2
"""What an operation may always take: where less is free, a limit would only add to the trouble."""


class DataLimit:
    """A bound on this process's data: allocations beyond it fail, and the process lives on.

    They fail as RuntimeError or MemoryError; without a bound the kernel would end the process.
    Linux only: elsewhere the system has no such limit, or does not say how much data there is.
    """

    def __init__(self, *, reserve: int, limit: int | None, share: float = 1.0) -> None:
        """Bound the data to a share of what is available less a reserve, or to `limit` bytes."""
        self._reserve, self._share = reserve, share
        self._fixed = None if limit is None else _field("VmData") + limit
        self.renew()

    def renew(self) -> None:
        """Follow what other programs took or freed since; a fixed limit stays. Takes 0.1 ms."""
        own = _field("VmData")
        if resource is None or own == 0:
            return
        free = int(self._share * unreserved(self._reserve))
        bound = own + max(free, LEAST_ROOM) if self._fixed is None else self._fixed
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            bound = min(bound, hard)
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
        except (ValueError, OSError) as error:
            log.warning("No memory limit could be set: %s", error)


def unreserved(reserve: int) -> int:
    """Return the bytes that this machine could give to a process, less a reserve."""
    return int(psutil.virtual_memory().available) - reserve


def available(device: torch.device) -> int:
    """Return the bytes that a new allocation on this device may take."""
    if devices.is_gpu(device):
        return devices.free_bytes(device)
    free = int(psutil.virtual_memory().available)
    if resource is None or (own := _field("VmData")) == 0:
        return free
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return free if soft == resource.RLIM_INFINITY else min(free, soft - own)


def resident(device: torch.device) -> int:
    """Return the bytes in use: of the GPU where the model is there, else of this process."""
    if devices.is_gpu(device):
        return devices.used_bytes(device)
    return int(psutil.Process().memory_info().rss)


def reset_peak(device: torch.device) -> None:
    """Start counting the highest use anew."""
    if devices.is_gpu(device):
        devices.reset_peak(device)
        return
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError as error:
        log.info("The peak counter could not be reset: %s", error)


def peak(device: torch.device) -> int:
    """Return the highest use in bytes since `reset_peak`."""
    if devices.is_gpu(device):
        return devices.peak_bytes(device)
    return _field("VmHWM") or resident(device)


def set_aside() -> None:
    """Let `release` pass over all that there is now: imports leave half a million objects.

    Looking through them takes half a second each time. What is set aside and dies is still freed
    by its reference count, but not where it is part of a cycle: call it before there is a model.
    """
    gc.freeze()


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if devices.is_gpu(device):
        devices.empty_cache(device)
    elif not join_freed(device) and _TRIM is not None:
        _TRIM(0)  # freed blocks stay with glibc otherwise, and count against the limit


def join_freed(device: torch.device) -> bool:
    """Make one of the freed blocks of a processor that wait for others of their own size.

    It takes 0.2 ms for a small model, 35 ms where 0.5 GB wait. Returns whether there is a way.
    """
    if devices.is_gpu(device) or not REUSES_BLOCKS:
        return False
    _LINKED.scalable_allocation_command(_CLEAN_ALL_BUFFERS, None)
    return True


@contextmanager
def exact_allocation(wanted: bool) -> Iterator[None]:
    """Let a processor's tensors take what they need and no more, for a while.

    glibc before 2.38 cannot reuse the hole that an aligned block of the same size left, and torch
    aligns every tensor: a step's memory more than doubles. Blocks mapped one by one come and go
    whole, at the price of their page faults, which make a step 1.5 to 2 times as long. A process
    whose allocator uses its blocks again needs none of this.
    """
    if not wanted or _MALLOPT is None or REUSES_BLOCKS:
        yield
        return
    _MALLOPT(_MMAP_THRESHOLD, _EXACT)
    try:
        yield
    finally:
        _MALLOPT(_MMAP_THRESHOLD, _USUAL)  # where glibc's own adjusting ends up with such blocks


def require(needed: int, device: torch.device, what: str) -> None:
    """Raise OutOfMemory, before anything is touched, where `needed` bytes cannot be had."""
    free = available(device)
    if needed > free:
        raise OutOfMemory(
            f"{what} needs about {size_text(needed)}, and {size_text(free)} are free.",
            cure="Choose a smaller model or bf16, or close other programs.",
        )


def _field(name: str) -> int:
    """Read one line of /proc/self/status, in bytes; 0 where there is none."""
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError) as error:
        log.debug("No %s: %s", name, error)
    return 0
