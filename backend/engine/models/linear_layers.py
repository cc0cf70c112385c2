"""The linear layers of a base model, which adapters change and quantisation packs."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from transformers.pytorch_utils import Conv1D

from backend.engine.models import text_part
from backend.engine.models.text_part import Part

_MODELS = "transformers.models."


class Target(NamedTuple):
    """A layer that an adapter can change: its module name, input and output size.

    Other kinds are parameters, under their full name: those of all experts together, (experts,
    outputs, inputs), and single matrices such as a router's. What PEFT says about a layer
    (`by_parameter`, `refusal`) is found in `methods/adaptable.py`.
    """

    name: str
    inputs: int
    outputs: int
    kind: Literal["layer", "experts", "parameter"] = "layer"
    experts: int = 1
    by_parameter: bool = False
    """PEFT takes this layer's name for that of an expert; only `target_parameters` reaches it."""
    packed: bool = False
    """Its weight is quantised, so that it cannot be adapted as a parameter."""
    refusal: str = ""
    """Why PEFT cannot adapt this layer; empty where it can."""

    @property
    def narrow(self) -> int:
        """The smaller side, which bounds the rank."""
        return min(self.inputs, self.outputs)

    @property
    def numbers(self) -> int:
        """The weights that it holds."""
        return self.inputs * self.outputs * self.experts


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
    inside = [layer for layer in found if not text_part.is_inside(layer.name, parts)]
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


def _is_inside_a_tuner(name: str) -> bool:
    return ".base_layer" in name or ".lora_" in name


def base_layer(module: torch.nn.Module) -> torch.nn.Module:
    """Return the base's own layer inside the wrapper of an adapter or a slot, if there is one."""
    unwrap: Any = getattr(module, "get_base_layer", None)
    inner: torch.nn.Module = unwrap() if unwrap is not None else module
    return inner
