"""The linear layers of a base model, which adapters change and quantisation packs."""

from typing import Any, Literal, NamedTuple

import torch
from transformers.pytorch_utils import Conv1D


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


def linear_layers(model: torch.nn.Module) -> list[Target]:
    """Return every layer that LoRA can change here, without the output head."""
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head else None
    found = []
    for name, module in model.named_modules():
        plain = base_layer(module)
        inside_tuner = ".base_layer" in name or ".lora_" in name
        if isinstance(plain, torch.nn.Linear | Conv1D) and plain is not head and not inside_tuner:
            if isinstance(plain, torch.nn.Linear):  # packed weights do not have the layer's shape
                found.append(Target(name, plain.in_features, plain.out_features))
            else:
                found.append(Target(name, *plain.weight.shape))
    return found


def base_layer(module: torch.nn.Module) -> torch.nn.Module:
    """Return the base's own layer inside the wrapper of an adapter or a slot, if there is one."""
    unwrap: Any = getattr(module, "get_base_layer", None)
    inner: torch.nn.Module = unwrap() if unwrap is not None else module
    return inner
