"""The memory allocator for processes with a model.

PyTorch requests aligned blocks, and glibc before 2.38 cannot reuse the gap that such a block leaves
behind: the activations of a training step take 2 to 3 times their size. oneTBB's allocator (on PyPI
for Linux on x86) reuses it at the same speed. It must be loaded before anything is allocated, which
only the dynamic linker can do.
"""

import os
from importlib.metadata import PackageNotFoundError, files

LIBRARIES = ("libtbbmalloc.so.2", "libtbbmalloc_proxy.so.2")


def environment() -> dict[str, str]:
    """Return the environment variables that load the allocator; empty if it is not installed."""
    try:
        installed = {file.name: os.path.realpath(file.locate()) for file in files("tbb") or ()}
    except PackageNotFoundError:
        return {}
    paths = [installed.get(name, "") for name in LIBRARIES]
    if not all(paths) or any(mark in path for path in paths for mark in " :"):  # separators
        return {}
    return {"LD_PRELOAD": ":".join(paths)}
