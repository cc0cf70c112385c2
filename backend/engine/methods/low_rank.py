"""An adapter's weight change as low-rank factors, read from its folder or written to one.

A layer's change is scaling x B x A (Hu et al. 2021, section 4.1). Everything here works on the
factors. Norms and products of changes are computed from small Gram matrices, in float64. Knows
nothing of models.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from backend.catalogue import init_methods
from backend.engine.core.adapter_keys import key_of, layer_of
from backend.engine.methods.peft_io import WEIGHTS, read_config
from backend.engine.methods.scaling import scaling_of
from backend.engine.methods.targets import matched, target_names
from backend.engine.models.linear_layers import Target
from backend.errors import InvalidRequest, ModelError, Unsupported

LARGEST = 1e30
# These initialisations move a part of the base into the adapter, so its change is not only B x A.


@dataclass(frozen=True)
class Factor:
    """One layer's change: scaling x B x A; A: (rank, inputs), B: (outputs, rank), fp32."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float = 1.0

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def limit(self) -> int:
        """The largest rank that a change of this shape can have."""
        return min(self.a.shape[1], self.b.shape[0])

    def change(self) -> torch.Tensor:
        """Return the change itself, (outputs, inputs), fp32, as PEFT's `get_delta_weight`."""
        return self.b @ self.a * self.scaling

    def times(self, weight: float) -> "Factor":
        """Return this change times a weight."""
        return Factor(self.a, self.b, self.scaling * weight)


Layers = dict[str, Factor]


@dataclass(frozen=True)
class Source:
    """An adapter's factors by layer, with its display name."""

    name: str
    layers: Layers
    start: bool | str = True
    """How new weights of such an adapter are initialised (PEFT's `init_lora_weights`)."""


def read(folder: Path, name: str) -> Source:
    """Read an adapter's factors; raises Unsupported where its change is more than B x A."""
    config = read_config(folder)
    _require_plain(config, name)
    tensors = load_file(folder / WEIGHTS)
    layers: Layers = {}
    for key, a in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        layer = layer_of(key)
        b = tensors.get(key.replace(".lora_A.", ".lora_B."))
        if b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise ModelError(f"{name!r} lacks a part of its weights for {layer}.")
        layers[layer] = Factor(a.float(), b.float(), scaling_of(config, layer, a.shape[0]))
    if 2 * len(layers) != len(tensors):
        raise Unsupported(
            f"{name!r} has more than two factors per layer, and a blend would lose the rest.",
            cure="Use an adapter that is plain LoRA.",
        )
    return Source(name, layers, config.init_lora_weights)


def stacked(parts: Sequence[Factor]) -> Factor:
    """Return the exact sum of changes of one layer: concatenated factors, scaling inside A."""
    a = torch.cat([part.a * part.scaling for part in parts])
    return Factor(a, torch.cat([part.b for part in parts], dim=1))


def inner(left: Factor, right: Factor) -> float:
    """Return the Frobenius inner product of two changes: the trace of two small products."""
    grams = (left.b.double().T @ right.b.double()) * (left.a.double() @ right.a.double().T)
    return float(grams.sum()) * left.scaling * right.scaling


def squared_norm(parts: Iterable[Factor]) -> float:
    """Return the squared Frobenius norm of a sum of changes of one layer."""
    listed = list(parts)
    total = stacked([Factor(p.a.double(), p.b.double(), p.scaling) for p in listed])
    return max(inner(total, total), 0.0)


def write(layers: Layers, targets: list[Target], base_name: str, folder: Path) -> LoraConfig:
    """Write factors of scaling 1 as a plain LoRA folder that PEFT loads; returns its configuration.

    Ranks may differ by layer: PEFT reads them from `rank_pattern`; `alpha_pattern` keeps scaling 1.
    """
    config = configuration(layers, targets, base_name)
    tensors = {}
    for name, factor in layers.items():
        tensors[key_of(name, "lora_A.weight")] = factor.a.contiguous()
        tensors[key_of(name, "lora_B.weight")] = factor.b.contiguous()
    config.save_pretrained(str(folder))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return config


def configuration(layers: Layers, targets: list[Target], base_name: str) -> LoraConfig:
    """Return the configuration of a plain LoRA adapter with these factors, at scaling 1."""
    rank = max(factor.rank for factor in layers.values())
    others = {name: factor.rank for name, factor in layers.items() if factor.rank != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=dict(others),
        alpha_pattern=dict(others),
        target_modules=target_names(layers.keys(), targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    if {target.name for target in matched(config, targets)} != layers.keys():
        missing = ", ".join(sorted(layers.keys() - {target.name for target in targets})[:3])
        raise ModelError(f"The base has no {missing or 'such set of layers'}.")
    return config


def _require_plain(config: LoraConfig, name: str) -> None:
    convert = f"Convert {name!r} to plain LoRA first."
    if config.use_dora:
        raise Unsupported(f"{name!r} is DoRA: a blend would lose its magnitudes.", cure=convert)
    if not init_methods.leaves_the_base(config.init_lora_weights):
        raise Unsupported(
            f"{name!r} was initialised with {config.init_lora_weights!r}, which also changes the "
            "base: its factors alone are not its whole effect.",
            cure=convert,
        )
    kept = {
        "whole modules (modules_to_save)": config.modules_to_save,
        "trained tokens": config.trainable_token_indices,
        "biases": config.bias != "none" or config.lora_bias,
        "trained parameters (target_parameters)": config.target_parameters,
    }
    found = [what for what, there in kept.items() if there]
    if found:
        raise Unsupported(
            f"{name!r} contains {' and '.join(found)}, which cannot be summed with weights.",
            cure="Blend only adapters that are plain LoRA.",
        )


def require_usable(layers: Layers) -> None:
    """Raise InvalidRequest where a blend's values are too large for a model to compute with."""
    for name, factor in layers.items():
        largest = float(factor.a.abs().max()) * float(factor.b.abs().max()) * factor.rank
        if not largest < LARGEST:  # also catches NaN
            raise InvalidRequest(
                f"With these weights the blend overflows in {name}.", cure="Use smaller weights."
            )
