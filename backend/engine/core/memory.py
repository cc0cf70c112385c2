"""Free and used memory in bytes, and a limit that turns running out of memory into an error.

Without the limit the kernel would kill the process. Knows nothing of models.
"""

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
    """Return the C functions linked into this process; None where the system does not allow it."""
    try:
        return ctypes.CDLL(None)
    except TypeError:  # Windows; the functions used here do not exist there anyway
        return None


_LINKED = _linked_libraries()
_TRIM = getattr(_LINKED, "malloc_trim", None)
_MALLOPT = getattr(_LINKED, "mallopt", None)
REUSES_BLOCKS = hasattr(_LINKED, "__TBB_malloc_proxy")
"""Whether this process runs with the allocator of `backend.service.allocator` (oneTBB)."""
_CLEAN_ALL_BUFFERS = 0  # TBBMALLOC_CLEAN_ALL_BUFFERS of oneTBB's scalable_allocator.h
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_EXACT, _USUAL = 1024**2, 32 * 1024**2
LEAST_ROOM = 256 * 1024**2
"""The bytes that an operation may always take, even if less is free."""


class DataLimit:
    """A limit on this process's data (RLIMIT_DATA): allocations beyond it fail with an error.

    They raise RuntimeError or MemoryError; without the limit the kernel would kill the process.
    Linux only: other systems have no such limit, or do not report the size of the data.
    """

    def __init__(self, *, reserve: int, limit: int | None, share: float = 1.0) -> None:
        """Limit the data to a share of the available bytes less a reserve, or to `limit` bytes."""
        self._reserve, self._share = reserve, share
        self._fixed = None if limit is None else _field("VmData") + limit
        self.renew()

    def renew(self) -> None:
        """Adapt to the memory of other programs; a fixed limit stays. Takes 0.1 ms."""
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
    """Return the available bytes of this machine, less a reserve."""
    return int(psutil.virtual_memory().available) - reserve


def available(device: torch.device) -> int:
    """Return the bytes available for new allocations on this device."""
    if devices.is_gpu(device):
        return devices.free_bytes(device)
    free = int(psutil.virtual_memory().available)
    if resource is None or (own := _field("VmData")) == 0:
        return free
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return free if soft == resource.RLIM_INFINITY else min(free, soft - own)


def resident(device: torch.device) -> int:
    """Return the bytes in use: on the GPU for a GPU device, else by this process."""
    if devices.is_gpu(device):
        return devices.used_bytes(device)
    return int(psutil.Process().memory_info().rss)


def reset_peak(device: torch.device) -> None:
    """Start counting the highest use again."""
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
    """Exclude all current objects from garbage collection in `release` (`gc.freeze`).

    Imports leave half a million objects, and a collection takes half a second for them each time.
    Excluded objects are still freed by their reference count, but not if they are part of a cycle.
    So call this before a model is loaded.
    """
    gc.freeze()


def release(device: torch.device) -> None:
    """Free everything without references, and return the memory to the system."""
    gc.collect()
    if devices.is_gpu(device):
        devices.empty_cache(device)
    elif not join_freed(device) and _TRIM is not None:
        _TRIM(0)  # otherwise freed blocks stay with glibc and count against the limit


def join_freed(device: torch.device) -> bool:
    """Join freed blocks on a processor that the allocator keeps for blocks of the same size.

    Takes 0.2 ms for a small model, 35 ms for 0.5 GB. Returns whether the allocator can do this.
    """
    if devices.is_gpu(device) or not REUSES_BLOCKS:
        return False
    _LINKED.scalable_allocation_command(_CLEAN_ALL_BUFFERS, None)
    return True


@contextmanager
def exact_allocation(wanted: bool) -> Iterator[None]:
    """Let a processor's tensors take exactly the memory that they need, for a while.

    glibc before 2.38 cannot reuse the hole that an aligned block of the same size left, and torch
    aligns every tensor, so a step's memory more than doubles. Blocks that are mapped one by one are
    returned whole, but their page faults make a step 1.5 to 2 times as long. A process with an
    allocator that reuses its blocks does not need this.
    """
    if not wanted or _MALLOPT is None or REUSES_BLOCKS:
        yield
        return
    _MALLOPT(_MMAP_THRESHOLD, _EXACT)
    try:
        yield
    finally:
        _MALLOPT(_MMAP_THRESHOLD, _USUAL)  # the value that glibc's own adjustment reaches


def require(needed: int, device: torch.device, what: str) -> None:
    """Raise OutOfMemory where `needed` bytes are not available; called before any allocation."""
    free = available(device)
    if needed > free:
        raise OutOfMemory(
            f"{what} needs about {size_text(needed)} of memory, but only {size_text(free)} are "
            "free.",
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
