"""The model processes that this one has started; other tests leave children of other kinds."""

import psutil


def engines(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """Return the children that hold a model, the app's own included; not those that have ended."""
    children = (parent or psutil.Process()).children(recursive=True)
    return [child for child in children if is_engine(child)]


def is_engine(process: psutil.Process) -> bool:
    """Tell whether a process is alive and holds a model, as one that only reads does not."""
    try:
        words = process.cmdline()
        return "backend.engine" in words and words[-1] != "read"
    except psutil.Error:  # it has ended
        return False
