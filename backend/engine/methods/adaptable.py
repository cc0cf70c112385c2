"""What PEFT can adapt in a base: its linear layers, and the parameters that other modules hold.

PEFT 0.21.2 takes some names of layers for those that a mixture of experts had in Transformers 4,
and does not adapt some layers of some architectures. It is asked about each name, so that the
answers are its own. Knows no adapters.
"""

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.pytorch_utils import Conv1D

from backend.engine.models import text_part
from backend.engine.models.linear_layers import Target, Targets, base_layer, linear_layers
from backend.errors import ModelError

_WITHOUT_TARGETS = (
    torch.nn.Linear,
    Conv1D,
    torch.nn.Embedding,
    torch.nn.modules.conv._ConvNd,
)
_EXPERT = re.compile("expert", re.IGNORECASE)


def adaptable(model: torch.nn.Module) -> Targets:
    """Return a base's linear layers, with what PEFT says about each, and its held parameters.

    With or without weights, and with or without adapters on it.
    """
    found = linear_layers(model)
    asked = {leaf: _ask(model, leaf) for leaf in {_leaf(layer.name) for layer in found}}
    misread = _misread(model, [each.name for each in found if not asked[_leaf(each.name)][0]])
    layers = []
    for layer in found:
        by_parameter, refusal = asked[_leaf(layer.name)]
        if layer.name in misread:
            refusal = f"PEFT cannot read an adapter of {_parent(layer.name)} back"
        weight: Any = base_layer(model.get_submodule(layer.name)).weight
        packed = not weight.is_floating_point()
        if by_parameter and packed:
            refusal = f"PEFT cannot reach {_leaf(layer.name)} of this base while it is quantised"
        layers.append(layer._replace(by_parameter=by_parameter, packed=packed, refusal=refusal))
    held = [t for t in _held_parameters(model) if not text_part.is_inside(t.name, found.outside)]
    return Targets([*layers, *held], found.elsewhere, found.outside)


def has_experts(targets: Iterable[Target]) -> bool:
    """Tell whether a base has parameters that hold all of its experts."""
    return any(each.kind == "experts" for each in targets)


def with_weights(targets: list[Target]) -> list[Target]:
    """Return the parameters among these targets, and the weights of the layers among them."""
    weights = [
        Target(f"{each.name}.weight", each.inputs, each.outputs, "parameter")
        for each in targets
        if each.kind == "layer" and not each.packed
    ]
    return [each for each in targets if each.kind != "layer"] + weights


def places(parameters: list[Target]) -> dict[str, Target]:
    """Return adapted parameters by the path under which PEFT keeps their adapters.

    PEFT wraps a module once for each of its adapted parameters, in the module's own order: the last
    one is outermost, at the module's path, and every other one a `base_layer` deeper.
    """
    by_module: dict[str, list[Target]] = {}
    for each in parameters:
        by_module.setdefault(each.name.rpartition(".")[0], []).append(each)
    return {
        module + ".base_layer" * (len(held) - 1 - index): each
        for module, held in by_module.items()
        for index, each in enumerate(held)
    }


def is_converted(model: torch.nn.Module, config: LoraConfig) -> bool:
    """Tell whether PEFT does more than copy tensors when it loads such an adapter on this base.

    It converts names and shapes for some kinds of models (0.21.2), and nests adapted parameters.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return bool(config.target_parameters) or get_checkpoint_conversion_mapping(kind) is not None


def require_unchanged(config: LoraConfig, model: torch.nn.Module) -> None:
    """Raise ModelError where PEFT would adapt other layers than a configuration names."""
    converted = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(converted, model, None)
    except ValueError as error:
        raise ModelError(f"PEFT cannot use these target modules here: {error}") from None
    for field in ("target_modules", "target_parameters", "rank_pattern", "alpha_pattern"):
        before, after = getattr(config, field), getattr(converted, field)
        if sorted(before or ()) != sorted(after or ()):
            raise ModelError(
                "PEFT would adapt other layers than these target modules name: it takes "
                f"{', '.join(sorted(set(before or ()) - set(after or ()))) or 'them'} for experts.",
                cure="Leave them out, or train the experts, too.",
            )


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _parent(name: str) -> str:
    """Return the last two parts of a layer's name, such as shared_experts.gate_proj."""
    return ".".join(name.split(".")[-2:])


def _ask(model: torch.nn.Module, leaf: str) -> tuple[bool, str]:
    """Return whether PEFT takes a name for an expert's, and why it does not adapt such a layer."""
    config = LoraConfig(target_modules=[leaf])
    try:
        require_unchanged(config, model)
        taken = False
    except ModelError:
        taken = True
    check: Any = partial(LoraModel._check_target_module_compatiblity, None)
    try:
        check(config, model, leaf)
    except ValueError:
        kind = getattr(getattr(model, "config", None), "model_type", "this kind")
        return taken, f"PEFT cannot adapt {leaf} in {kind} models"
    return taken, ""


def _misread(model: torch.nn.Module, names: list[str]) -> set[str]:
    """Return the layers whose tensors PEFT would rename when it reads an adapter of them.

    Transformers' rules for the names of older checkpoints also match some of today's names: in
    Laguna, `shared_expert.` matches `shared_experts` (5.23).
    """
    tensors = {f"base_model.model.{name}.lora_A.weight": torch.zeros(1, 1) for name in names}
    config = LoraConfig(task_type="CAUSAL_LM")
    with suppress(Exception):  # then PEFT says why when the adapter is placed, before any step
        read = convert_peft_adapter_state_dict_for_transformers(model, config, tensors, "default")
        return {name for name, key in zip(names, tensors, strict=True) if key not in read}
    return set()


def _held_parameters(model: torch.nn.Module) -> Iterator[Target]:
    """Yield the matrices, also stacked ones, that modules other than linear layers hold.

    In the order in which PEFT goes through them. `inputs` and `outputs` follow PEFT, which reads
    (experts, outputs, inputs), or (experts, inputs, outputs) where a module says `is_transposed`.
    """
    counts = _expert_counts(getattr(model, "config", None))
    for path, module in model.named_modules():
        if isinstance(module, _WITHOUT_TARGETS) or ".lora_" in path:
            continue
        name = path.replace(".base_layer", "")
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim not in (2, 3) or not parameter.is_floating_point():
                continue
            *stack, outputs, inputs = parameter.shape
            if stack and getattr(module, "is_transposed", False):
                outputs, inputs = inputs, outputs
            experts = stack[0] if stack else 1
            kind = "experts" if stack and experts > 1 and experts in counts else "parameter"
            yield Target(f"{name}.{key}", inputs, outputs, kind, experts)  # type: ignore[arg-type]


def _expert_counts(config: Any) -> set[int]:
    """Return the numbers in a model's configuration that count experts."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    values = text.to_dict() if hasattr(text, "to_dict") else {}
    return {
        value
        for key, value in values.items()
        if _EXPERT.search(key) and isinstance(value, int) and not isinstance(value, bool)
    }
