"""The extension of a finished run: the packs of its additional epochs and their learning rate.

A run has one segment of steps, and one more for each extension. All segments draw the order of the
examples from one generator, so an extension sees what a longer run would have seen. The learning
rate schedule runs again over the steps of each segment: warm-up, then decay.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from backend.catalogue.learning_rate import schedule_name
from backend.engine.data.token_arrays import lengths_of
from backend.engine.data.tokenization import Tokens
from backend.engine.steps import packing
from backend.engine.steps.packing import Packs
from backend.requests import Train
from backend.results.training_layout import TrainingLayout
from backend.runs.data_record import Restart


class Stretch(NamedTuple):
    """A segment of a run's steps; its first step is `start` + 1."""

    start: int
    steps: int


class Plan(NamedTuple):
    """The packs of a run in order, and its segments."""

    packs: Packs
    stretches: list[Stretch]

    @property
    def total_steps(self) -> int:
        return self.stretches[-1].start + self.stretches[-1].steps


def plan(
    documents: Sequence[Tokens],
    request: Train,
    extra_epochs: list[float],
    restart: Restart | None = None,
    layout: TrainingLayout = "packed",
) -> Plan:
    """Return the plan of a run with its extensions; a pure function, so a resumed run repeats it.

    Each segment starts with a new step: a pack is repeated where gradient accumulation would
    otherwise mix two segments. The repeated pack is never trained on, because the steps before an
    extension are already done. With `restart` the documents are those of a run that went on with
    other data.
    """
    if restart is not None:
        later = extra_epochs[restart.extensions :]
        return _restarted(documents, request, later, restart, layout)
    segments = packing.segments(
        [len(document) for document in documents],
        budget=request.tokens_per_step,
        epochs=[request.epochs, *extra_epochs],
        seed=request.seed,
        layout=layout,
    )
    packs: list[list[int]] = []
    stretches: list[Stretch] = []
    for number, segment in enumerate(segments):
        limit = request.max_steps if number == 0 else None
        steps = steps_for(len(segment), request, limit=limit)
        start = stretches[-1].start + stretches[-1].steps if stretches else 0
        packs += packs[-1:] * (start * request.accumulation - len(packs))
        packs += segment[: steps * request.accumulation] if extra_epochs else segment
        stretches.append(Stretch(start, steps))
    return Plan(Packs(documents, packs, request.processes, layout), stretches)


def _restarted(
    documents: Sequence[Tokens],
    request: Train,
    later: list[float],
    restart: Restart,
    layout: TrainingLayout,
) -> Plan:
    """Plan what remains of a run, and its later extensions, over other documents.

    The packs before the restart are further epochs over the new documents. They are trained on
    only where steps are repeated because the checkpoint of the restart was discarded.
    """
    lengths, each_step = lengths_of(documents), request.accumulation
    packs = _before(lengths, request, restart, layout)
    segments = packing.segments(
        lengths,
        budget=request.tokens_per_step,
        epochs=[restart.epochs, *later],
        seed=request.seed + restart.step,
        layout=layout,
    )
    stretches = [Stretch(*each) for each in restart.stretches]
    for number, segment in enumerate(segments):
        steps = len(segment) if number or restart.limit is None else restart.limit * each_step
        steps = -(-min(steps, len(segment)) // each_step)
        if number == 0:  # it continues the segment in which the data changed
            start, done = stretches.pop()
            stretches.append(Stretch(start, done + steps))
            begun = restart.step
        else:
            begun = stretches[-1].start + stretches[-1].steps
            stretches.append(Stretch(begun, steps))
        packs += packs[-1:] * (begun * each_step - len(packs))
        packs += segment[: steps * each_step]
    return Plan(Packs(documents, packs, request.processes, layout), stretches)


def _before(
    lengths: list[int], request: Train, restart: Restart, layout: TrainingLayout
) -> list[list[int]]:
    """Return the packs of the steps before a restart."""
    wanted, epochs = restart.step * request.accumulation, 1.0
    packs: list[list[int]] = []
    while len(packs) < wanted:
        epochs *= 2
        packs = packing.plan(
            lengths,
            budget=request.tokens_per_step,
            epochs=epochs,
            seed=request.seed,
            layout=layout,
        )
    return packs[:wanted]


def enough(
    planned: Plan,
    request: Train,
    extra_epochs: list[float],
    steps: int,
    restart: Restart | None = None,
) -> Packs:
    """Return a run's packs, continued by further epochs where it makes more steps than planned."""
    if not extra_epochs and restart is None:
        return packing.enough(planned.packs, request, steps)
    documents, epochs, packs = planned.packs.documents, list(extra_epochs), planned.packs
    while len(packs) < (steps - 1) * request.accumulation + 1:
        if restart is not None and len(epochs) == restart.extensions:
            longer = {"epochs": math.ceil(2 * max(restart.epochs, 1)), "limit": None}
            restart = restart.model_copy(update=longer)
        else:
            epochs[-1] = math.ceil(2 * epochs[-1])
        packs = plan(documents, request, epochs, restart, packs.layout).packs
    return packs


def steps_for(packs: int, request: Train, *, limit: int | None) -> int:
    """Return the number of optimizer steps for so many packs, at most `limit`."""
    whole = -(-packs // request.accumulation)
    return min(whole, limit) if limit else whole


def total_steps(request: Train, packs: int) -> int:
    """Return the number of optimizer steps of a run without extensions."""
    return steps_for(packs, request, limit=request.max_steps)


def schedule(request: Train, optimizer: Optimizer, stretches: list[Stretch]) -> LambdaLR:
    """Return the learning rate of all segments: the same schedule, once for each."""
    factors = [
        get_scheduler(
            schedule_name(request.scheduler),
            optimizer,
            round(request.warmup * each.steps),
            each.steps,
        ).lr_lambdas[0]
        for each in stretches
    ]

    def factor(step: int) -> float:
        number = max(i for i, each in enumerate(stretches) if each.start <= step)
        return float(factors[number](step - stretches[number].start))

    return LambdaLR(optimizer, factor)


def words(stretch: Stretch, epochs: float) -> str:
    """Describe what an extension adds, and its learning rate."""
    last = stretch.start + stretch.steps
    added = f"{epochs:g} epoch" if epochs == 1 else f"{epochs:g} epochs"
    return (
        f"Extended by {added}: steps {stretch.start + 1:,} to {last:,}. "
        "The learning rate schedule runs again over these steps."
    )
