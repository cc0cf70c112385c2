"""The linear layers of a base model, which adapters change and quantisation packs."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from transformers.pytorch_utils import Conv1D

from backend.engine.models import text_part
from backend.engine.models.text_part import Part

_MODELS = "transformers.models."


class Target(NamedTuple):
    """A layer that an adapter can change: its module name, input and output size."""

    name: str
    inputs: int
    outputs: int


class Targets(list[Target]):
    """The layers of a base that adapters can change.

    `elsewhere` has the names of all other modules: no target may match one, because PEFT would
    adapt it, or fail. `outside` has the parts that text does not pass through.
    """

    def __init__(
        self,
        found: Iterable[Target] = (),
        elsewhere: Iterable[str] = (),
        outside: Sequence[Part] = (),
    ) -> None:
        super().__init__(found)
        self.elsewhere = frozenset(elsewhere)
        self.outside = list(outside)


def linear_layers(model: torch.nn.Module) -> Targets:
    """Return every layer of the text part that LoRA can change here, without the output head."""
    parts = text_part.outside(model)
    found = every_linear_layer(model)
    refused = _refused_by_peft(model, {layer.name.rsplit(".", 1)[-1] for layer in found})
    inside = [
        layer
        for layer in found
        if not text_part.is_inside(layer.name, parts)
        and layer.name.rsplit(".", 1)[-1] not in refused
    ]
    every = {name for name, _ in model.named_modules() if not _is_inside_a_tuner(name)}
    return Targets(inside, every - {layer.name for layer in inside}, parts)


def every_linear_layer(model: torch.nn.Module) -> list[Target]:
    """Return every linear layer but the output head, also those that text does not pass through."""
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head else None
    found = []
    for name, module in model.named_modules():
        plain: Any = base_layer(module)
        kind = isinstance(plain, torch.nn.Linear | Conv1D)
        if kind and plain is not head and not _is_inside_a_tuner(name) and _is_a_product(plain):
            if isinstance(plain, torch.nn.Linear):  # packed weights do not have the layer's shape
                found.append(Target(name, plain.in_features, plain.out_features))
            else:
                found.append(Target(name, *plain.weight.shape))
    return found


def _is_a_product(layer: torch.nn.Module) -> bool:
    """Tell whether a layer returns one row for a row, which PEFT can add to.

    Subclasses of a model's own may not, such as the router of Llama 4 and the grouped projection of
    DeepSeek-V4 in Transformers 5.23.0; one is tried on a row of zeros.
    """
    kind = type(layer)
    if kind.forward is torch.nn.Linear.forward or not kind.__module__.startswith(_MODELS):
        return True
    weight: Any = layer.weight
    row = torch.zeros(1, weight.shape[-1], dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            found = layer(row)
    except (RuntimeError, ValueError, TypeError):
        return False
    return isinstance(found, torch.Tensor) and found.shape == (1, weight.shape[0])


def _refused_by_peft(model: torch.nn.Module, names: set[str]) -> set[str]:
    """Return the names of layers that PEFT 0.21.2 refuses on a model.

    The kernels of Mamba read the weight of `out_proj` and would pass by an adapter.
    """
    refused = set()
    for name in names:
        try:
            _check_lora_target_modules_mamba(LoraConfig(), model, name)
        except ValueError:
            refused.add(name)
    return refused


def _is_inside_a_tuner(name: str) -> bool:
    return ".base_layer" in name or ".lora_" in name


def base_layer(module: torch.nn.Module) -> torch.nn.Module:
    """Return the base's own layer inside the wrapper of an adapter or a slot, if there is one."""
    unwrap: Any = getattr(module, "get_base_layer", None)
    inner: torch.nn.Module = unwrap() if unwrap is not None else module
    return inner
