"""Pre-flight checks of a run in several processes: enough devices, and memory for all of them."""

from backend.engine.training.memory_estimate import Estimate
from backend.errors import Unsupported
from backend.requests import Train
from backend.results import ModelFacts, Problem
from backend.runs import launch_commands
from backend.sizes import size_text


def memory_bytes(train: Train, device: str, each: Estimate) -> int:
    """Return the bytes that a run takes of shared memory, beyond what is loaded now.

    On processors all processes share the machine's memory. On GPUs each process has its own GPU
    and that GPU's memory.
    """
    if train.processes == 1:
        return each.run
    return each.total * (train.processes if device == "cpu" else 1)


def problems(train: Train, facts: ModelFacts | None) -> list[Problem]:
    """Return why this machine cannot give each process its own device or core, if it cannot."""
    if facts is None or train.processes == 1:
        return []
    try:
        launch_commands.require_places(train.processes, facts)
    except Unsupported as error:
        return [Problem(what=error.what, cure=error.cure)]
    return []


def too_big(train: Train, needed: int, free: int) -> Problem:
    """Return the problem that the processes do not fit into memory together."""
    return Problem(
        what=f"{train.processes} processes, each with the base in memory, need about "
        f"{size_text(needed)}, but only {size_text(free)} are free.",
        cure="Use fewer processes, or fewer tokens per batch.",
    )


def notes(train: Train) -> list[str]:
    """Return the notes on a run in several processes."""
    if train.processes == 1:
        return []
    return [
        f"{train.processes} separate processes share each step, each with its own copy of the "
        "base in memory. The loaded model stays available meanwhile."
    ]
