"""The choice of what a new adapter trains: layers, expert parameters, and what is left out and why.

PEFT would silently ignore a name that matches nothing, train other layers than those named, or fail
in the first step; here each layer that was asked for is named for PEFT, left out with a note, or
refused with the reason.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from backend.engine.methods.adaptable import with_weights
from backend.engine.methods.targets import hits, only_these, parameter_names, target_names
from backend.engine.models.linear_layers import Target
from backend.errors import InvalidRequest
from backend.requests import Lora

_ATTENTION = re.compile(r"(^|[._])(self_)?attn|attention", re.IGNORECASE)
SHOWN = 6


class Choice(NamedTuple):
    """What a new adapter trains: PEFT's `target_modules` and `target_parameters`, and notes."""

    modules: list[str]
    parameters: list[str]
    notes: list[str]


class _Sorted(NamedTuple):
    """Layers by how PEFT reaches them; `out` holds those left out, by the reason."""

    modules: list[Target]
    weights: list[Target]
    out: dict[str, list[Target]]


def choose(request: Lora, targets: list[Target], *, quantized: bool = False) -> Choice:
    """Choose the layers and parameters to train; raises InvalidRequest where that is impossible.

    `targets` are those of `adaptable`. On a quantised base only whole layers can be adapted.
    """
    _require_plain(request)
    layers = [each for each in targets if each.kind == "layer"]
    wanted = _wanted(request, layers)
    named = not isinstance(request.targets, str)
    found = _sorted(request, wanted, quantized=quantized)
    experts = _experts(request, targets) if request.experts else []
    if named and found.out:
        raise _refused(found.out, request, wanted)
    if not (found.modules or found.weights or experts):
        raise _nothing_left(request, wanted, found.out)
    parameters = [each.name for each in (*experts, *found.weights)]
    return Choice(
        _module_names(request, found, targets),
        parameter_names(parameters, targets) if parameters else [],
        [*_notes(found.out, request), *_about_dropout(request)],
    )


def _require_plain(request: Lora) -> None:
    if request.experts and request.use_dora:
        raise InvalidRequest(
            "PEFT cannot train the parameters of experts with DoRA.",
            cure="Choose LoRA or rsLoRA, or leave the experts frozen.",
        )


def _wanted(request: Lora, layers: list[Target]) -> list[Target]:
    available = ", ".join(sorted({layer.name.rsplit(".", 1)[-1] for layer in layers}))
    if request.targets == "all-linear":
        return layers
    if request.targets == "attention":
        found = [layer for layer in layers if _ATTENTION.search(layer.name)]
        if not found:
            raise InvalidRequest(
                "No layer of this model has the name of an attention layer.",
                cure=f"Choose all-linear, or some of these names: {available}.",
            )
        return found
    missing = [t for t in request.targets if not any(hits(t, layer.name) for layer in layers)]
    if missing:
        raise InvalidRequest(
            f"No layer is called {', '.join(map(repr, missing))} in this model.",
            cure=f"Layers that can be trained here: {available}.",
        )
    return [layer for layer in layers if any(hits(t, layer.name) for t in request.targets)]


def _sorted(request: Lora, wanted: list[Target], *, quantized: bool) -> _Sorted:
    modules: list[Target] = []
    weights: list[Target] = []
    out: dict[str, list[Target]] = {}
    for layer in wanted:
        if layer.refusal and not (layer.by_parameter and layer.packed):
            out.setdefault(layer.refusal, []).append(layer)
        elif layer.narrow < request.rank:
            out.setdefault(_NARROW, []).append(layer)
        elif not layer.by_parameter:
            modules.append(layer)
        elif quantized or layer.packed:
            out.setdefault(_PACKED, []).append(layer)
        elif request.experts:
            weights.extend(with_weights([layer]))
        else:
            out.setdefault(_TAKEN, []).append(layer)
    return _Sorted(modules, weights, out)


_NARROW, _TAKEN, _PACKED = "too narrow", "taken", "packed"


def _experts(request: Lora, targets: list[Target]) -> list[Target]:
    found = [each for each in targets if each.kind == "experts"]
    if not found:
        raise InvalidRequest(
            "This base has no parameters of experts that could be trained.",
            cure="Turn off: Train the experts, too.",
        )
    smallest = min(each.narrow for each in found)
    if request.rank > smallest:
        raise InvalidRequest(
            f"Rank {request.rank} is larger than the base's experts allow ({smallest}).",
            cure=f"Choose a rank up to {smallest}.",
        )
    return found


def _module_names(request: Lora, found: _Sorted, layers: list[Target]) -> list[str]:
    if not isinstance(request.targets, str) and not found.weights:
        return only_these(request.targets, layers)
    return target_names({each.name for each in found.modules}, layers)


def _refused(out: dict[str, list[Target]], request: Lora, wanted: list[Target]) -> InvalidRequest:
    reason, layers = next(iter(out.items()))
    if reason == _NARROW:
        return _too_narrow(layers, request, wanted)
    if reason == _TAKEN:
        return InvalidRequest(
            f"PEFT takes {_leaves(layers)} of this base for names of its experts.",
            cure="Leave out these names, or turn on: Train the experts, too.",
        )
    if reason == _PACKED:
        reason = f"PEFT cannot reach {_leaves(layers)} of this base while it is quantised"
    return InvalidRequest(f"{reason}.", cure=f"Leave out {_leaves(layers)}.")


def _too_narrow(layers: list[Target], request: Lora, wanted: list[Target]) -> InvalidRequest:
    smallest, largest = min(each.narrow for each in layers), max(each.narrow for each in wanted)
    cure = f"Choose a rank up to {smallest}"
    if largest >= request.rank:
        cure += f", or leave out {_leaves(layers)}"
    elif largest > smallest:
        without = [each for each in layers if each.narrow < largest]
        cure += f", or up to {largest} without {_leaves(without)}"
    return InvalidRequest(
        f"Rank {request.rank} is larger than the smallest target layer allows ({smallest}).",
        cure=f"{cure}.",
    )


def _nothing_left(
    request: Lora, wanted: list[Target], out: dict[str, list[Target]]
) -> InvalidRequest:
    if out.keys() == {_NARROW}:
        largest = max(layer.narrow for layer in wanted)
        return InvalidRequest(
            f"Rank {request.rank} is larger than any target layer allows ({largest}).",
            cure=f"Choose a rank up to {largest}.",
        )
    if not out:
        return InvalidRequest("This base has no linear layers that an adapter could change.")
    return _refused(out, request, wanted)


def _notes(out: dict[str, list[Target]], request: Lora) -> Iterable[str]:
    for reason, layers in out.items():
        many = len(layers) > 1
        count = f"{len(layers)} layers" if many else "1 layer"
        left = f"{'are' if many else 'is'} left out: {_leaves(layers)}."
        if reason == _NARROW:
            yield f"{count} too narrow for rank {request.rank} {left}"
        elif reason == _TAKEN:
            yield (
                f"{count}, whose names PEFT takes for those of experts, {left} "
                "Train the experts, too, to reach them."
            )
        elif reason == _PACKED:
            yield f"{count} that PEFT cannot reach on a quantised base {left}"
        else:
            yield f"{count} {left} {reason}."


def _about_dropout(request: Lora) -> Iterable[str]:
    if request.experts and request.dropout:
        yield "Dropout is off: PEFT cannot apply it to the parameters of experts."


def _leaves(layers: list[Target]) -> str:
    leaves = list(dict.fromkeys(layer.name.rsplit(".", 1)[-1] for layer in layers))
    return ", ".join(leaves[:SHOWN]) + (", ..." if len(leaves) > SHOWN else "")
