"""What a look ahead says of a run that several processes share: places, and memory for them all."""

from backend.engine.training.memory_estimate import Estimate
from backend.errors import Unsupported
from backend.requests import Train
from backend.results import ModelFacts, Problem
from backend.runs import launch_commands
from backend.sizes import size_text


def memory_bytes(train: Train, device: str, each: Estimate) -> int:
    """Return what a run takes of the memory that its processes share, beyond what is loaded now.

    On processors they share the machine's; each GPU has a process, and its memory, to itself.
    """
    if train.processes == 1:
        return each.run
    return each.total * (train.processes if device == "cpu" else 1)


def problems(train: Train, facts: ModelFacts | None) -> list[Problem]:
    """Return what keeps this machine from giving each process a place."""
    if facts is None or train.processes == 1:
        return []
    try:
        launch_commands.require_places(train.processes, facts)
    except Unsupported as error:
        return [Problem(what=error.what, cure=error.cure)]
    return []


def too_big(train: Train, needed: int, free: int) -> Problem:
    """Say that the processes do not fit beside each other."""
    return Problem(
        what=f"{train.processes} processes, each with the base in memory, need about "
        f"{size_text(needed)}, and {size_text(free)} are free.",
        cure="Use fewer processes, or a smaller token budget.",
    )


def notes(train: Train) -> list[str]:
    """Say how a run goes that several processes share."""
    if train.processes == 1:
        return []
    return [
        f"{train.processes} processes of its own share each step, each with a base in memory; "
        "the session stays free meanwhile."
    ]
