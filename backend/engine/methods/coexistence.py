"""Which adapters PEFT can keep on one model at the same time, and what they leave behind on it.

PEFT 0.21.2 wraps a module once for each adapted parameter, and a tensor's name says only how deep
its wrapper is. So all adapters with `target_parameters` must name the same ones, and none may adapt
a layer whose weight another adapts as a parameter. Knows nothing of the session.
"""

import itertools

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists

from backend.engine.methods.adaptable import places
from backend.engine.methods.peft_io import adapted_layers
from backend.engine.methods.targets import matched, matched_parameters
from backend.engine.models.linear_layers import Target, base_layer
from backend.errors import ModelError, Unsupported


def can_share(one: LoraConfig, other: LoraConfig, targets: list[Target]) -> bool:
    """Tell whether two adapters can be on one model together."""
    first, second = set(one.target_parameters or ()), set(other.target_parameters or ())
    if first and second:
        return first == second
    if not first and not second:
        return True
    wrapping, plain = (one, other) if first else (other, one)
    held = matched_parameters(wrapping.target_parameters or (), targets)
    modules = {each.name.rpartition(".")[0] for each in held}
    return not any(check_target_module_exists(plain, module) for module in modules)


def require_together(configs: dict[str, LoraConfig], targets: list[Target]) -> None:
    """Raise Unsupported where two adapters, by display name, cannot be on one model together."""
    for one, other in itertools.combinations(configs, 2):
        if not can_share(configs[one], configs[other], targets):
            raise Unsupported(
                f"{one!r} and {other!r} change different parameters of experts, and PEFT cannot "
                "keep both on a model at once.",
                cure="Use one of them at a time.",
            )


def odd_beside(
    config: LoraConfig, there: dict[str, LoraConfig], targets: list[Target]
) -> list[str]:
    """Return those of these adapters, by id, that cannot be on the model with another one."""
    return [id for id, other in there.items() if not can_share(config, other, targets)]


def require_placed(
    adapted: dict[str, LoraLayer], config: LoraConfig, targets: list[Target], adapter_id: str
) -> None:
    """Raise ModelError where PEFT put an adapter elsewhere than its configuration says.

    `adapted` are PEFT's layers on the model by their path in the base.
    """
    wanted = matched(config, targets)
    layers = {each.name for each in wanted if each.kind == "layer"}
    expected = layers | places([each for each in wanted if each.kind != "layer"]).keys()
    placed = {name for name, layer in adapted.items() if adapter_id in layer.lora_A}
    if odd := sorted(placed ^ expected):
        raise ModelError(
            f"PEFT put the adapter on other layers than were chosen, including {odd[0]}.",
            cure="Choose other target modules.",
        )


def tidy(model: torch.nn.Module, targets: list[Target]) -> None:
    """Make a model as PEFT expects it before parameters are adapted.

    No layers without adapters are left on it, and each module's parameters are in the order that
    they had when it was loaded: each call of an adapted parameter moves it to the end of its module
    (torch 2.13), and PEFT nests the next adapter's wrappers in the order that it finds.
    """
    strip_empty(model)
    for each in (target for target in targets if target.kind != "layer"):
        path, _, key = each.name.rpartition(".")
        held = base_layer(model.get_submodule(path))._parameters
        held[key] = held.pop(key)


def strip_empty(model: torch.nn.Module) -> None:
    """Remove PEFT's layers that hold no adapter any more; the base's own ones return.

    PEFT leaves them, and would nest the next adapter's parameters in them in another order.
    """
    for name, layer in adapted_layers(model).items():
        if ".base_layer" not in name and not layer.lora_A and not layer.lora_embedding_A:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, base_layer(layer))
