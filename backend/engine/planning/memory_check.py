"""The memory that a planned run takes, and what would make it fit where it does not."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from backend.engine.data import tokenization
from backend.engine.methods.targets import count_trainable, matched
from backend.engine.models.model_size import Shape
from backend.engine.planning import multiprocess_checks, smaller_base
from backend.engine.planning.surroundings import Surroundings
from backend.engine.steps import few_lengths, packing
from backend.engine.training import memory_estimate
from backend.requests import Train
from backend.results import Problem, SmallerBase
from backend.settings import Settings
from backend.sizes import size_text


class Room(NamedTuple):
    """The memory that a run takes, and the settings that would make it fit where it does not."""

    free: int
    needed: int = 0
    parts: Sequence[tuple[str, int]] = ()
    budget: int = 0
    change: dict[str, int | bool] | None = None
    smaller: SmallerBase | None = None
    problems: Sequence[Problem] = ()
    notes: Sequence[str] = ()


def described(
    train: Train,
    around: Surroundings,
    corpus: tokenization.Corpus,
    packs: packing.Packs,
    config: Any,
    computed: str,
) -> tuple[Shape, memory_estimate.Setup]:
    """Return the sizes that decide about memory; a base without facts counts as fp32.

    `computed` is the precision of the run's steps.
    """
    shape = Shape.of(around.model, around.parameters)
    targets = tuple(matched(config, around.targets))
    facts = around.facts
    stats = corpus.stats
    rounded = few_lengths.rounds(around.device, computed)
    return shape, memory_estimate.Setup(
        stored=facts.precision if facts else "fp32",
        quantization=around.quantization,
        double_quant=facts.double_quant if facts else False,
        computed=computed,
        device=around.device.type,
        targets=targets,
        trainable=count_trainable(config, list(targets)),
        optimizer=train.optimizer,
        uses_dora=bool(config.use_dora),
        learned_share=stats.learned_tokens / max(stats.tokens, 1),
        checkpointing=train.gradient_checkpointing,
        **memory_estimate.layout_of(around.model, packs, rounded=rounded),
    )


def compare(
    train: Train,
    shape: Shape,
    setup: memory_estimate.Setup,
    free: int,
    *,
    longest: int,
    around: Surroundings,
    settings: Settings,
) -> Room:
    """Compare a run with the free memory, using gradient checkpointing where it needs that."""
    notes = []
    if memory_estimate.needs_checkpointing(shape, setup, free):
        notes = ["Gradient checkpointing will be on: without it the run does not fit into memory."]
    setup = memory_estimate.settle(shape, setup, free)
    needs = memory_estimate.estimate(shape, setup)
    needed = multiprocess_checks.memory_bytes(train, setup.device, needs)
    alone, problems, change, smaller = train.processes == 1, [], None, None
    if needed > free and alone:
        change = memory_estimate.smallest_change(shape, setup, free, longest=longest)
        if around.session is not None:
            base = around.session.base
            smaller = smaller_base.find(train, base, shape, setup, free=free, settings=settings)
        problems = [_too_big(needed, free, change, smaller)]
    elif needed > free:
        problems = [multiprocess_checks.too_big(train, needed, free)]
    return Room(
        free=free,
        needed=needed,
        parts=list(needs.parts) if alone else [],
        budget=memory_estimate.largest_budget(shape, setup, free),
        change=change,
        smaller=smaller,
        problems=problems,
        notes=notes,
    )


def _too_big(
    needed: int, free: int, change: dict[str, int | bool] | None, smaller: SmallerBase | None
) -> Problem:
    """Say that a run does not fit, and what would: other settings, a smaller base, or nothing."""
    fits = [f"It fits with {memory_estimate.words(change)}."] if change else []
    if smaller is not None:
        also = "also " if change else ""
        size = size_text(smaller.memory_bytes)
        fits.append(f"It {also}fits with {smaller.title}, which takes {size} with the run.")
        fits.append(smaller.price)
    return Problem(
        what=f"The run needs about {size_text(needed)} of memory, but only "
        f"{size_text(free)} are free.",
        cure=" ".join(fits) or "No base that this app has by itself fits either: free some memory.",
    )
