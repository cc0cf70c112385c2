"""The memory allocator that a process with a model is started with.

PyTorch asks for aligned blocks, and glibc before 2.38 cannot use the hole again that such a block
left behind: a training step's activations take 2 to 3 times their size. oneTBB's allocator (from
PyPI, where it is built for Linux on x86) uses it again, at the same speed. It has to be there
before anything is allocated, which only the dynamic linker can do.
"""

import os
from importlib.metadata import PackageNotFoundError, files

LIBRARIES = ("libtbbmalloc.so.2", "libtbbmalloc_proxy.so.2")


def environment() -> dict[str, str]:
    """Return what a process needs in its environment to have the allocator; nothing without it."""
    try:
        installed = {file.name: os.path.realpath(file.locate()) for file in files("tbb") or ()}
    except PackageNotFoundError:
        return {}
    paths = [installed.get(name, "") for name in LIBRARIES]
    if not all(paths) or any(mark in path for path in paths for mark in " :"):  # both separate
        return {}
    return {"LD_PRELOAD": ":".join(paths)}
