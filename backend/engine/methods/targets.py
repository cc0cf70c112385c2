"""Target modules and parameters: what of a base an adapter changes, and their names for PEFT."""

from collections.abc import Collection, Iterable

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from backend.engine.methods import scaling
from backend.engine.methods.adaptable import with_weights
from backend.engine.models import text_part
from backend.engine.models.linear_layers import Target, Targets


def only_these(targets: Collection[str], layers: list[Target]) -> list[str]:
    """Return targets as they are, or as names that match these layers and no other module."""
    others = {end for name in elsewhere(layers) for end in _ends(name)}
    if others.isdisjoint(targets):
        return list(targets)
    found = {each.name for each in layers if each.kind == "layer"}
    return target_names(
        {name for name in found if any(hits(target, name) for target in targets)}, layers
    )


def target_names(wanted: Collection[str], layers: list[Target]) -> list[str]:
    """Return names with which PEFT finds these layers and no others.

    A name is the shortest suffix of a layer's path that no unwanted layer shares: `q_proj`, but
    `attn.c_proj` in GPT-2, whose `mlp.c_proj` ends in the same name. Where the suffix would need a
    layer number, the full path is used.
    """
    others = {each.name for each in layers if each.kind == "layer" and each.name not in wanted}
    return _shortest_names(wanted, others | elsewhere(layers))


def parameter_names(wanted: Collection[str], targets: list[Target]) -> list[str]:
    """Return names with which PEFT finds these parameters and no others (`target_parameters`)."""
    others = {each.name for each in with_weights(targets)}
    kinds = {name.rpartition(".")[2] for name in wanted}  # a picture tower may have them, too
    others |= {f"{module}.{kind}" for module in elsewhere(targets) for kind in kinds}
    return _shortest_names(wanted, others - set(wanted))


def matched(config: LoraConfig, targets: list[Target]) -> list[Target]:
    """Return the layers and parameters that PEFT's own matcher finds for a configuration."""
    layers = [
        layer
        for layer in targets
        if layer.kind == "layer" and check_target_module_exists(config, layer.name)
    ]
    return [*layers, *matched_parameters(config.target_parameters or (), targets)]


def matched_parameters(names: Collection[str], targets: list[Target]) -> list[Target]:
    """Return the parameters that PEFT finds for `target_parameters`, in the model's order."""
    if not names:
        return []
    return [each for each in with_weights(targets) if any(hits(name, each.name) for name in names)]


def count_trainable(config: LoraConfig, targets: list[Target]) -> int:
    """Return an adapter's trainable parameters: r (in + out) per layer, plus out for DoRA.

    A parameter of experts has r (in + out) for each of them.
    """
    extra = 1 if config.use_dora else 0
    return sum(
        scaling.rank_of(config, t.name) * (t.inputs + t.outputs) * t.experts + extra * t.outputs
        for t in targets
    )


def hits(target: str, name: str) -> bool:
    """Tell whether PEFT finds a name for a target: the whole path or its end."""
    return name == target or name.endswith("." + target)


def _shortest_names(wanted: Collection[str], others: Iterable[str]) -> list[str]:
    taken = {end for name in others for end in _ends(name)}
    return sorted({_shortest(name, taken) for name in wanted})


def _ends(name: str) -> list[str]:
    """Return the suffixes of a path, shortest first: `c_proj`, `attn.c_proj`..."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]


def _shortest(name: str, taken: set[str]) -> str:
    for end in _ends(name):
        if end.split(".", 1)[0].isdigit():
            break
        if end not in taken:
            return end
    return name


def elsewhere(layers: list[Target]) -> frozenset[str]:
    """Return the modules of a base that are no layers here, such as those of a picture tower."""
    return layers.elsewhere if isinstance(layers, Targets) else frozenset()


def outside(name: str, layers: list[Target]) -> str:
    """Return the part that a module of an adapter is in, where text does not pass; else empty."""
    parts = layers.outside if isinstance(layers, Targets) else []
    found = (part.name for part in parts if text_part.is_inside(name, [part]))
    return next(found, "") or text_part.part_named_in(name)
