"""Under which conditions a figure was measured: a number without them says nothing."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

BF16_FLAGS = ("avx512_bf16", "amx_bf16")
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "gradio")


class Conditions:
    """The machine and its load, from the beginning of a measurement to its end."""

    def __init__(self) -> None:
        self._date = time.strftime("%Y-%m-%d")
        self._load_before = os.getloadavg()[0]

    def lines(self, **more: object) -> list[str]:
        """Return the conditions line by line; called at the end. `more` is added as it is."""
        memory = psutil.virtual_memory().total / 1024**3
        extra = [f"{name.replace('_', ' ')}: {value}" for name, value in more.items()]
        return [
            f"date: {self._date}",
            f"processor: {processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory; "
            f"{bf16_instructions() or 'no instructions for bf16'}",
            *extra,
            f"versions: {versions()}",
            f"load average: {self._load_before:.1f} before, {os.getloadavg()[0]:.1f} after",
        ]


def processor() -> str:
    """Return the processor's name as the system tells it."""
    for line in _cpu_info():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def bf16_instructions() -> str:
    """Return the processor's flags for products in bf16, which decide how fast that is."""
    flags = next((line for line in _cpu_info() if line.startswith("flags")), "").split()
    return ", ".join(flag for flag in BF16_FLAGS if flag in flags)


def versions() -> str:
    """Return the versions of Python and of the libraries that decide a speed."""
    return ", ".join([f"Python {platform.python_version()}", *map(_version, LIBRARIES)])


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} not installed"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
