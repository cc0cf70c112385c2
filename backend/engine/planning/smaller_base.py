"""A base that a run fits on where it does not fit on the loaded one, with its price.

The loaded base in bf16, 8 or 4 bits comes first, because its adapters stay usable; then the largest
of the models that the app has by itself.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from backend.catalogue.packaged_models import PACKAGED_MODELS
from backend.catalogue.quantizations import QUANTIZATIONS
from backend.engine.core import devices
from backend.engine.methods import peft_io
from backend.engine.methods.targets import count_trainable, matched
from backend.engine.models import loading, quantization
from backend.engine.models.loading import Base
from backend.engine.models.model_size import Shape, weight_bytes
from backend.engine.planning.quantization_table import known_speeds, speed_text
from backend.engine.steps import layouts
from backend.engine.training import memory_estimate
from backend.engine.training.memory_estimate import Setup
from backend.engine.training.precision_choice import StepTimes, Timings, without_timing
from backend.errors import WorkbenchError
from backend.requests import LoadModel, Train
from backend.results import SmallerBase
from backend.settings import STARTER, Settings

ROUNDED = "Its weights are rounded to bf16, which changes answers very little."
CHECKPOINTING = "Gradient checkpointing will be on, which makes each step about a third longer."


class _Choice(NamedTuple):
    """A way to load a base, and what a run on it is."""

    title: str
    load: LoadModel
    shape: Shape
    setup: Setup
    quality: str
    speed: str


def find(
    train: Train,
    base: Base,
    shape: Shape,
    setup: Setup,
    *,
    free: int,
    settings: Settings,
) -> SmallerBase | None:
    """Return the first base that fits with these settings of a run; None where none does.

    `free` are the bytes beside the loaded base, which is unloaded first.
    """
    room = free + base.facts.memory_measured_bytes
    taken = weight_bytes(shape, setup)
    for each in chain(_same(train, base, shape, setup, settings), _others(train, base, settings)):
        settled, needed = _needed(each, room)
        if needed <= room and weight_bytes(each.shape, settled) < taken:
            return SmallerBase(
                title=each.title,
                load=each.load.model_dump(exclude_defaults=True),
                memory_bytes=needed,
                price=_price(each, longer=settled.checkpointing and not setup.checkpointing),
            )
    return None


def _needed(choice: _Choice, room: int) -> tuple[Setup, int]:
    """Return the settled run, and the bytes of base and run together."""
    weights = weight_bytes(choice.shape, choice.setup)
    settled = memory_estimate.settle(choice.shape, choice.setup, room - weights)
    return settled, memory_estimate.estimate(choice.shape, settled).total


def _price(choice: _Choice, *, longer: bool) -> str:
    return " ".join(part for part in (choice.quality, choice.speed, CHECKPOINTING * longer) if part)


def _same(
    train: Train, base: Base, shape: Shape, setup: Setup, settings: Settings
) -> Iterator[_Choice]:
    """Yield smaller forms of the loaded base, the most exact first."""
    facts, request = base.facts, base.plan.request
    if facts.stored_quantized or facts.quantization != "none":
        return
    if facts.precision == "fp32" and devices.computes_bf16(base.device):
        yield _Choice(
            "this base in bf16",
            request.model_copy(update={"precision": "bf16"}),
            shape,
            replace(setup, stored="bf16", computed="bf16"),
            ROUNDED,
            _speed_in_bf16(Timings(settings.timings_file).get(train, facts, layouts.of(base))),
        )
    if not _may_quantise(train, base, shape):
        return
    stored, _ = loading.choose_precision(request.precision, base.device, quantized=True)
    computed = without_timing(train, stored, base.device)
    speeds, source = known_speeds(base.device, settings)
    for id in ("int8", "nf4"):
        known = QUANTIZATIONS[id]
        speed = speed_text(speeds[id], source)
        yield _Choice(
            f"this base in {known.title}",
            request.model_copy(update={"quantization": id}),
            shape,
            replace(
                setup,
                quantization=id,
                stored=stored,
                computed=computed[0] if computed else setup.computed,
            ),
            known.summary,
            f"{speed[:1].upper()}{speed[1:]}.",
        )


def _may_quantise(train: Train, base: Base, shape: Shape) -> bool:
    """Tell whether the base can be quantised here, and have such an adapter then."""
    if not shape.linear or quantization.blocker(base.device):
        return False
    try:
        peft_io.configure(train.adapter, shape.adaptable, "", quantized=True)
    except WorkbenchError:
        return False
    return True


def _speed_in_bf16(times: StepTimes | None) -> str:
    if times is None:
        return "Whether steps take longer depends on the processor; it was not measured here."
    relative = times.bf16 / times.fp32
    return f"A step in bf16 takes {relative:.1f} times as long as in fp32 (measured here)."


def _others(train: Train, base: Base, settings: Settings) -> Iterator[_Choice]:
    """Yield the models that the app has by itself, the largest first."""
    if train.start_from is not None:
        return
    for source, title, shape in sorted(_known(settings), key=lambda each: -each[2].parameters):
        try:
            config = peft_io.configure(train.adapter, shape.adaptable, "")
        except WorkbenchError:
            continue
        targets = matched(config, shape.adaptable)
        load = LoadModel(source=source, device=base.plan.request.device)
        stored, _ = loading.choose_precision("auto", base.device)
        computed = without_timing(train, stored, base.device)
        yield _Choice(
            f"{title}, {shape.parameters / 1e6:,.0f} M parameters",
            load,
            shape,
            Setup(
                stored=stored,
                computed=computed[0] if computed else "fp32",
                device=base.device.type,
                targets=tuple(targets),
                trainable=count_trainable(config, targets),
                optimizer=train.optimizer,
                uses_dora=bool(config.use_dora),
                tokens=train.tokens_per_step,
                checkpointing=train.gradient_checkpointing,
            ),
            "It is another model: it knows less, and adapters of the loaded base do not fit it.",
            "Each step is faster.",
        )


def _known(settings: Settings) -> Iterator[tuple[str, str, Shape]]:
    """Yield source, title and sizes of the models that need no download."""
    for name, model in PACKAGED_MODELS.items():
        if model.is_here(settings.models_dir):
            yield name, model.title, Shape.from_config(model.sizes)
    yield "starter", "the starter", Shape.from_config(STARTER / "model" / "config.json")
