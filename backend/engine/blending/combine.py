"""Blending adapters of the library into a new one: check, blend layer by layer, publish.

The blend is a plain LoRA adapter of scaling 1. It is compared with the exact weighted sum, loaded,
written, read back and verified before it is published; after a failure nothing is kept.
"""

import math
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from backend.catalogue import blends
from backend.engine.adapters import saving
from backend.engine.blending.blend_methods import blend_layer, draw_as_peft
from backend.engine.core.job_control import Control
from backend.engine.methods import low_rank, peft_io
from backend.engine.methods.low_rank import Factor, Layers, Source
from backend.engine.methods.targets import target_names
from backend.engine.models.linear_layers import Target
from backend.engine.session import Session
from backend.errors import ModelError, Unsupported, VerificationFailed
from backend.requests import Combine
from backend.results import AdapterInfo, Blend


@dataclass(frozen=True)
class Plan:
    """What is blended: the final request, its sources, and the layers in order."""

    request: Combine
    sources: list[Source]
    targets: list[Target]
    rank: int
    notes: tuple[str, ...] = ()

    def parts(self, layer: str) -> list[tuple[Factor, float]]:
        """Return the ingredients of one layer with their weights."""
        weights = [weight for _, weight in self.request.sources]
        pairs = zip(self.sources, weights, strict=True)
        return [(s.layers[layer], weight) for s, weight in pairs if layer in s.layers]


class Distance(NamedTuple):
    """The distance of a blend from the exact weighted sum, relative to the sum's norm."""

    overall: float
    per_layer: dict[str, float]


def combine(
    session: Session, request: Combine, control: Control, *, taken: Collection[str] = ()
) -> Blend:
    """Blend adapters into a new one of the library, loaded and not active, or change nothing."""
    started = time.monotonic()
    session.library.require_free(request.name, taken)
    infos = ingredients(session, request)
    plan = make_plan(session, request, infos)
    layers = blend(plan, control)
    distance = measure(plan, layers)
    control.progress("Saving and verifying", force=True)
    colour = session.library.next_colour(beside=[info.colour for info in infos])
    info = _describe(session, plan, layers, colour)
    difference = _publish(session, info, layers)
    notes = (*plan.notes, *_notes(plan, layers))
    return Blend(
        adapter=info.model_copy(update={"max_difference": difference}),
        rank=info.rank,
        relative_error=distance.overall,
        relative_error_per_layer=distance.per_layer,
        seed=request.seed,
        max_difference=difference,
        seconds=time.monotonic() - started,
        notes=notes,
    )


# -- checks --------------------------------------------------------------------------------------


def ingredients(session: Session, request: Combine) -> list[AdapterInfo]:
    """Return the adapters to blend; raises where they cannot be blended with this method."""
    infos = [session.library.get(name) for name, _ in request.sources]
    problem = blends.obstacle(request.method, infos)
    if problem is not None:
        raise Unsupported(problem.what, cure=problem.cure)
    base = session.base.facts
    for info in infos:
        if info.base_fingerprint != base.fingerprint:
            raise Unsupported(
                f"{info.name!r} was made for the base {info.base_name!r}, "
                f"but {base.name!r} is loaded.",
                cure=f"Load {info.base_name!r} to blend it.",
            )
    return infos


def make_plan(session: Session, request: Combine, infos: list[AdapterInfo]) -> Plan:
    """Read the sources, choose layers, method and rank; raises where they do not fit together."""
    sources = [low_rank.read(session.library.folder(info.id), info.name) for info in infos]
    touched = {layer for source in sources for layer in source.layers}
    targets = [target for target in session.layers() if target.name in touched]
    unknown = touched - {target.name for target in targets}
    if unknown:
        raise ModelError(f"The base has no layer {min(unknown)!r} that an adapter could change.")
    request, notes = _for_one(request) if len(sources) == 1 else (request, ())
    plan = Plan(request, sources, targets, _rank(request, sources), notes)
    if blends.BLENDS[request.method].needs_equal_ranks:
        _require_equal_ranks(plan)
    return plan


def _for_one(request: Combine) -> tuple[Combine, tuple[str, ...]]:
    """Every method copies a single ingredient, as in PEFT; svd may still reduce its rank."""
    if request.method == "cat" or (request.method == "svd" and request.rank is not None):
        return request, ()
    note = f"With one ingredient, {request.method} is the exact copy times its weight."
    return request.model_copy(update={"method": "cat"}), (note,)


def _rank(request: Combine, sources: list[Source]) -> int:
    ranks = [max(factor.rank for factor in source.layers.values()) for source in sources]
    if request.method == "cat":
        return sum(ranks)
    largest = max(ranks)
    return (request.rank or largest) if "rank" in _fields(request) else largest


def _require_equal_ranks(plan: Plan) -> None:
    """Raise where ranks differ within a layer; rank patterns can hide that."""
    for target in plan.targets:
        ranks = sorted({factor.rank for factor, _ in plan.parts(target.name)})
        if len(ranks) > 1:
            problem = blends.unequal_ranks(plan.request.method, ranks, target.name)
            raise Unsupported(problem.what, cure=problem.cure)


# -- the blend -----------------------------------------------------------------------------------


def blend(plan: Plan, control: Control) -> Layers:
    """Blend layer by layer; raises InvalidRequest where values overflow."""
    layers: Layers = {}
    with _seeded(plan):
        for number, target in enumerate(plan.targets):
            control.check_stop()
            control.progress(
                f"layer {number + 1} of {len(plan.targets)}", number / len(plan.targets)
            )
            parts = plan.parts(target.name)
            layers[target.name] = blend_layer(
                [factor for factor, _ in parts],
                [weight for _, weight in parts],
                plan.request,
                min(plan.rank, target.inputs, target.outputs),
            )
    low_rank.require_usable(layers)
    return layers


@contextmanager
def _seeded(plan: Plan) -> Iterator[None]:
    """Use the request's seed for dare, and restore the session's random state afterwards."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(plan.request.seed)
        if "seed" in _fields(plan.request):
            draw_as_peft([(t.inputs, t.outputs) for t in plan.targets], plan.rank)
        yield


def measure(plan: Plan, layers: Layers) -> Distance:
    """Return the distance from the exact weighted sum, from the factors' Gram matrices."""
    squares: dict[str, tuple[float, float]] = {}
    for name, made in layers.items():
        exact = [factor.times(weight) for factor, weight in plan.parts(name)]
        gap = low_rank.squared_norm([made, *(part.times(-1.0) for part in exact)])
        size = low_rank.squared_norm(exact) or low_rank.inner(made, made)
        squares[name] = (gap, size)
    overall = _ratio(sum(g for g, _ in squares.values()), sum(s for _, s in squares.values()))
    return Distance(overall, {name: _ratio(*pair) for name, pair in squares.items()})


def _ratio(gap: float, size: float) -> float:
    """Return the ratio of two norms, given their squares; 0 where both are 0."""
    return math.sqrt(gap / size) if size > 0 else 0.0


def _fields(request: Combine) -> tuple[str, ...]:
    return blends.BLENDS[request.method].fields


def _notes(plan: Plan, layers: Layers) -> list[str]:
    notes = []
    ranks = sorted({factor.rank for factor in layers.values()})
    if ranks[0] < plan.rank and plan.request.method != "cat":
        notes.append(
            f"Rank {plan.rank} is more than "
            + ("some layers" if ranks[-1] == plan.rank else "the layers")
            + f" can use here; they have rank {' or '.join(map(str, ranks[:3]))}."
        )
    if all(weight == 0 for _, weight in plan.request.sources):
        notes.append("All weights are 0, so this blend changes nothing.")
    return notes


# -- publishing ----------------------------------------------------------------------------------


def _describe(session: Session, plan: Plan, layers: Layers, colour: str) -> AdapterInfo:
    facts, request = session.base.facts, plan.request
    return AdapterInfo(
        id=session.new_id(),
        name=request.name,
        colour=colour,
        method="LoRA",
        rank=max(factor.rank for factor in layers.values()),
        parameters=sum(factor.a.numel() + factor.b.numel() for factor in layers.values()),
        base_name=facts.name,
        base_fingerprint=facts.fingerprint,
        created=time.time(),
        chat_template=facts.given_template,
        origin="blend",
        recipe=blends.recipe_text(
            [
                (source.name, w)
                for source, (_, w) in zip(plan.sources, request.sources, strict=True)
            ],
            request.method,
            rank=request.rank,
            density=request.density,
            majority_sign=request.majority_sign,
            seed=request.seed,
        ),
        targets=tuple(target_names(layers.keys(), session.layers())),
    )


def _publish(session: Session, info: AdapterInfo, layers: Layers) -> float:
    """Load the blend, verify it, add it to the library; return the difference found."""
    session.library.root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=session.library.root, prefix=".blend-") as name:
            folder = Path(name)
            low_rank.write(layers, session.layers(), session.base.model.name_or_path, folder)
            session.load_folder(folder, info.id)
            assert session.peft is not None
            if not peft_io.same_weights(session.peft, info.id, folder):
                raise VerificationFailed("The blend on the model differs from the computed one.")
        return saving.publish(session, info)
    except BaseException:
        session.drop(info.id)
        raise
