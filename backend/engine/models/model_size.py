"""The sizes of a model, and the bytes of its weights, from its config.json alone.

A weight takes the bytes of its stored dtype. A quantised layer of n weights takes n/2 + 4 n/64
bytes (nf4, fp4), n/2 + n/64 + 4 n/16384 (double quantisation; Dettmers et al. 2023, section 3), or
n + 4 rows (int8).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from backend.catalogue.precisions import BYTES
from backend.engine.models import config_file, model_folder, text_part
from backend.engine.models.linear_layers import (
    Target,
    Targets,
    base_layer,
    every_linear_layer,
    linear_layers,
)
from backend.errors import ModelError, Unsupported

BLOCK, NESTED_BLOCK = 64, 256
INNER = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
"""How configurations name the inner width of an MLP."""
TABLE_BYTES, NESTED_TABLE_BYTES = 16 * 4, 256 * 4 + 4


@dataclass(frozen=True)
class Storage:
    """How the weights of a model are stored."""

    stored: str = "fp32"
    quantization: str = "none"
    double_quant: bool = False


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide about memory.

    `linear` has the linear layers that quantisation packs, which never packs the output head;
    `adaptable` has those that adapters can change. The other sizes are those of the text part.
    """

    parameters: int
    linear: tuple[Target, ...]
    adaptable: Targets
    layers: int
    width: int
    inner: int
    heads_width: int
    vocabulary: int
    gates: int = 2
    """How many layers of an MLP widen its input: 2 in a gated one, such as Llama's, else 1."""

    @classmethod
    def of(cls, model: torch.nn.Module, parameters: int | None = None) -> "Shape":
        """Read the sizes from a model, with or without weights; `parameters` of the base alone."""
        config: Any = text_part.text_config(model.config)
        width = text_part.width(model) or 512
        heads = text_part.largest(config, "num_attention_heads") or 1
        head = text_part.largest(config, "head_dim") or width // heads
        layers = text_part.layers(model) or 12
        inner = max(text_part.largest(config, name) for name in INNER) or 4 * width
        adaptable = linear_layers(model)
        return cls(
            parameters=parameters or sum(p.numel() for p in model.parameters()),
            linear=tuple(each for each in every_linear_layer(model) if _is_packed(model, each)),
            adaptable=adaptable,
            layers=layers,
            width=width,
            inner=inner,
            heads_width=heads * head,
            vocabulary=text_part.vocabulary(model),
            gates=_gates(adaptable, inner, layers),
        )

    @classmethod
    def from_config(cls, source: Path | dict[str, Any]) -> "Shape":
        """Read the sizes from a config.json or its content; no weights are needed or downloaded.

        Raises ModelError or Unsupported where it is not a causal language model's.
        """
        config = model_folder.read_config(source)
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except ImportError as error:  # for example of an attention that is a package of its own
            raise Unsupported(
                "This kind of model needs a Python package that is not installed here: "
                f"{config_file.first_line(error).rstrip('.')}.",
                cure="Choose a base that Transformers can compute by itself.",
                details=str(error),
            ) from error
        except Exception as error:
            reason = config_file.first_line(error).rstrip(".")
            raise ModelError(
                f"No model can be built from this config.json: {reason}.",
                cure="Check its sizes: each has to be a whole number above 0.",
                details=str(error),
            ) from error
        return cls.of(model)

    @property
    def linear_numbers(self) -> int:
        return sum(layer.inputs * layer.outputs for layer in self.linear)

    @property
    def largest(self) -> int:
        """The number of weights in the largest layer."""
        return max((layer.inputs * layer.outputs for layer in self.linear), default=0)


def _gates(adaptable: Targets, inner: int, layers: int) -> int:
    widening = [each for each in adaptable if each.inputs < inner <= each.outputs]
    return 1 if sum(each.outputs // inner for each in widening) == layers else 2


def _is_packed(model: torch.nn.Module, layer: Target) -> bool:
    """Tell whether Transformers 5.23 lets bitsandbytes pack a layer: no kind of a model's own.

    Falcon's linear layers are such a kind.
    """
    plain = base_layer(model.get_submodule(layer.name))
    return not type(plain).__module__.startswith("transformers.models.")


def weight_bytes(shape: Shape, storage: Storage) -> int:
    """Return the bytes of the loaded base."""
    if storage.quantization == "none":
        return shape.parameters * BYTES[storage.stored]
    rest = shape.parameters - shape.linear_numbers
    return rest * BYTES[storage.stored] + quantized_bytes(shape, storage)


def quantized_bytes(shape: Shape, storage: Storage) -> int:
    """Return the bytes of the quantised layers alone."""
    return sum(_layer_bytes(layer, storage) for layer in shape.linear)


def _layer_bytes(layer: Target, storage: Storage) -> int:
    numbers = layer.inputs * layer.outputs
    if storage.quantization == "int8":
        return numbers + 4 * layer.outputs
    blocks = -(-numbers // BLOCK)
    if not storage.double_quant:
        return -(-numbers // 2) + 4 * blocks + TABLE_BYTES
    nested = 4 * -(-blocks // NESTED_BLOCK) + NESTED_TABLE_BYTES
    return -(-numbers // 2) + blocks + nested + TABLE_BYTES
