"""Target modules: which layers of a base an adapter changes, and their names for PEFT."""

import re
from collections.abc import Collection

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from backend.engine.models import text_part
from backend.engine.models.linear_layers import Target, Targets
from backend.errors import InvalidRequest
from backend.requests import Lora

_ATTENTION = re.compile(r"(^|[._])(self_)?attn|attention", re.IGNORECASE)


def resolve_targets(request: Lora, layers: list[Target]) -> list[str]:
    """Return the module names for PEFT's `target_modules`.

    Raises InvalidRequest where a name matches no layer; PEFT would silently ignore it.
    """
    available = sorted({layer.name.rsplit(".", 1)[-1] for layer in layers})
    if request.targets == "all-linear":
        return target_names({layer.name for layer in layers}, layers)
    if request.targets == "attention":
        names = {layer.name for layer in layers if _ATTENTION.search(layer.name)}
        if not names:
            raise InvalidRequest(
                "No layer of this model has the name of an attention layer.",
                cure=f"Choose all-linear, or some of these names: {', '.join(available)}.",
            )
        return target_names(names, layers)
    missing = [t for t in request.targets if not any(_hits(t, layer.name) for layer in layers)]
    if missing:
        raise InvalidRequest(
            f"No layer is called {', '.join(map(repr, missing))} in this model.",
            cure=f"Layers that can be trained here: {', '.join(available)}.",
        )
    return only_these(request.targets, layers)


def only_these(targets: Collection[str], layers: list[Target]) -> list[str]:
    """Return targets as they are, or as names that match these layers and no other module."""
    others = {end for name in elsewhere(layers) for end in _ends(name)}
    if others.isdisjoint(targets):
        return list(targets)
    return target_names(
        {layer.name for layer in layers if any(_hits(t, layer.name) for t in targets)}, layers
    )


def target_names(wanted: Collection[str], layers: list[Target]) -> list[str]:
    """Return names with which PEFT finds these layers and no others.

    A name is the shortest suffix of a layer's path that no unwanted layer shares: `q_proj`, but
    `attn.c_proj` in GPT-2, whose `mlp.c_proj` ends in the same name. Where the suffix would need a
    layer number, the full path is used.
    """
    others = {layer.name for layer in layers if layer.name not in wanted} | elsewhere(layers)
    taken = {end for name in others for end in _ends(name)}
    return sorted({_shortest(name, taken) for name in wanted})


def matched(config: LoraConfig, layers: list[Target]) -> list[Target]:
    """Return the layers that PEFT's own matcher finds for a configuration."""
    return [layer for layer in layers if check_target_module_exists(config, layer.name)]


def count_trainable(config: LoraConfig, targets: list[Target]) -> int:
    """Return an adapter's trainable parameters: r (in + out) per layer, plus out for DoRA."""
    extra = 1 if config.use_dora else 0
    return sum(config.r * (t.inputs + t.outputs) + extra * t.outputs for t in targets)


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


def _hits(target: str, name: str) -> bool:
    return name == target or name.endswith("." + target)
