"""The settings that suit a base and its examples, with the reasons: rate, length, batch.

They depend on the base, the examples, and how often they are used; never on the settings that they
propose. So a form that takes them over is proposed the same again.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from backend.catalogue.learning_rate import usual_rate, why_usual
from backend.engine.data.token_arrays import Ints
from backend.engine.models.model_size import Shape
from backend.engine.training import memory_estimate
from backend.requests import Train
from backend.results import Proposal

USUAL_LENGTH = USUAL_BATCH = 512
"""The defaults of a request."""
LONGEST = 8192
MOST = 0.99
"""The share of the examples that the proposed length holds whole."""
LARGEST_BATCH, SMALLEST_BATCH = 2048, 64
FEW_STEPS, MANY_STEPS = 60, 2000
"""Fewer optimizer steps hardly train an adapter; far more only take longer than larger batches."""
ROUND = 64


class Room(NamedTuple):
    """Limits of a base and of the memory here, in tokens; 0 is unlimited."""

    context: int
    batch: int = 0
    """The largest batch that fits into memory with these settings."""
    checkpointed: int = 0
    """The same with the checkpointing that a run would turn on by itself."""


def room_for(shape: Shape, setup: memory_estimate.Setup, free: int, *, context: int = 0) -> Room:
    """Return the limits of a run with this setup; only a quantised base may add checkpointing."""
    lean = replace(setup, checkpointing=setup.checkpointing or setup.quantization != "none")
    budgets = (memory_estimate.largest_budget(shape, each, free) for each in (setup, lean))
    return Room(context, *budgets)


def propose(train: Train, lengths: Ints, parameters: int, room: Room) -> Proposal:
    """Return the settings for these examples; `lengths`: (examples,) in tokens, not cut."""
    length, why_length = _length(lengths, room)
    kept = np.minimum(lengths, min(length, room.context or length))
    batch, why_batch = _batch(train, kept, room)
    return Proposal(
        learning_rate=usual_rate(parameters),
        max_length=length,
        tokens_per_step=batch,
        why=(why_usual(parameters), why_length, why_batch),
    )


def _length(lengths: Ints, room: Room) -> tuple[int, str]:
    """Return the longest example: what most need, within the context and the memory."""
    needed = int(np.quantile(lengths, MOST, method="higher"))
    limits = [(LONGEST, "longer ones take more time than they are usually worth")]
    if room.context:
        limits.append((room.context, f"the base reads at most {room.context:,} at once"))
    if room.checkpointed:
        limits.append((_power(room.checkpointed), "more do not fit into memory"))
    most, reason = min(limits)
    length = max(USUAL_LENGTH, min(_rounded(needed), most))
    said = f"Longest example {length:,} tokens: {_held(lengths, min(length, most))}"
    return length, f"{said}; {reason}." if needed > min(length, most) else f"{said}."


def _held(lengths: Ints, length: int) -> str:
    """Say how many examples a length holds whole."""
    whole, all_of_them = int((lengths <= length).sum()), len(lengths)
    if whole == all_of_them:
        return f"{_examples(whole)} fit, the longest with {int(lengths.max()):,}"
    return f"{whole:,} of {_examples(all_of_them)} fit whole"


def _batch(train: Train, lengths: Ints, room: Room) -> tuple[int, str]:
    """Return tokens per batch: enough optimizer steps with few examples, not too many with many."""
    used = float(lengths.sum()) * train.epochs / train.accumulation
    longest = _rounded(int(lengths.max()))
    wanted, why = _wanted(used, _examples(len(lengths)))
    if room.batch and wanted > USUAL_BATCH:
        wanted = max(USUAL_BATCH, min(wanted, _power(room.batch)))
    if wanted < longest:
        wanted, why = longest, "the longest example must fit into a batch"
    return wanted, f"Tokens per batch {wanted:,}: {why}."


def _wanted(used: float, examples: str) -> tuple[int, str]:
    """Return the batch for so many tokens in all epochs, and why."""
    if used / USUAL_BATCH < FEW_STEPS:
        batch = max(int(used / FEW_STEPS) // ROUND * ROUND, SMALLEST_BATCH)
        return batch, f"small, so that {examples} give enough optimizer steps"
    if used / USUAL_BATCH > MANY_STEPS:
        batch = min(_rounded(int(used / MANY_STEPS)), LARGEST_BATCH)
        return batch, f"large, so that {examples} need fewer optimizer steps"
    return USUAL_BATCH, f"{examples} give a good number of optimizer steps"


def _examples(number: int) -> str:
    return f"{number:,} example{'' if number == 1 else 's'}"


def _rounded(tokens: int) -> int:
    return -(-tokens // ROUND) * ROUND


def _power(tokens: int) -> int:
    """Return the power of two below: free memory changes all the time, a proposal should not."""
    return 1 << max(tokens.bit_length() - 1, 4)
