"""An adapter's effect on the base's weights as plain LoRA; exact where that is possible.

PiSSA and OLoRA move a part of each base weight into the adapter when they are loaded. Their change
of the base is scaling * (B A - B0 A0), with B0 A0 as PEFT computes it from the weight: plain LoRA
of twice the rank (PEFT's `subtract_mutated_init`). Knows nothing of the session or the library.
"""

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from backend.catalogue import init_methods
from backend.engine.core import tolerances
from backend.engine.core.adapter_keys import key_of, layer_of
from backend.engine.methods import peft_io, targets
from backend.engine.methods.peft_io import WEIGHTS
from backend.engine.methods.scaling import alpha_of, scaling_of
from backend.engine.models.linear_layers import Target, base_layer, linear_layers
from backend.errors import ModelError, Unsupported

Pair = tuple[torch.Tensor, torch.Tensor]
"""Down (rank, inputs) and up (outputs, rank), at scaling 1."""
Factors = dict[str, Pair]


class Change(NamedTuple):
    """An adapter's change of one weight: up @ down, or `whole` where it is not low-rank.

    down: (rank, inputs); up: (outputs, rank); whole: (outputs, inputs). `error` is the difference
    of the factors from what PEFT computes, relative to the norm of the change.
    """

    factors: Pair | None = None
    whole: torch.Tensor | None = None
    error: float = 0.0


class Baked(NamedTuple):
    """A plain LoRA adapter equal to one of another kind; `error` is the largest of `Change`."""

    config: LoraConfig
    tensors: dict[str, torch.Tensor]
    rank: int
    error: float

    def write(self, folder: Path) -> None:
        """Write it as a plain PEFT folder."""
        self.config.save_pretrained(str(folder))
        save_file(self.tensors, folder / WEIGHTS, metadata={"format": "pt"})


def needs_baking(config: LoraConfig) -> bool:
    """Tell whether loading such an adapter would change the base itself."""
    return init_methods.changes_the_base(config.init_lora_weights)


def bake(folder: Path, base_model: torch.nn.Module) -> Baked:
    """Turn a scanned PiSSA or OLoRA folder into plain LoRA that does not change the base.

    `base_model` is the base as it was loaded, with or without plain adapters around its layers.
    Raises Unsupported where the part that the adapter took out of the base cannot be recomputed.
    """
    changes = changes_of(folder, base_model)
    factors = {n: change.factors for n, change in changes.items() if change.factors is not None}
    if len(factors) < len(changes):
        raise Unsupported(
            f"{folder.name} is a DoRA adapter, which is plain LoRA only approximately.",
            cure="Add it as it is, then convert it at a rank of your choice.",
        )
    name = str(peft_io.read_config(folder).base_model_name_or_path or "")
    config, tensors = plain(factors, linear_layers(base_model), name)
    return Baked(config, tensors, config.r, max(change.error for change in changes.values()))


def changes_of(folder: Path, base_model: torch.nn.Module) -> dict[str, Change]:
    """Compute an adapter folder's change of each base weight, including its scaling."""
    config = peft_io.read_config(folder)
    _require_repeatable(config, folder.name)
    tensors = load_file(folder / WEIGHTS)
    changes = {}
    for key, down in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        stem = key.removesuffix(".lora_A.weight")
        up, magnitude = tensors.get(f"{stem}.lora_B.weight"), _magnitude(tensors, stem)
        if up is None:
            raise ModelError(f"{folder.name} lacks lora_B of {stem}.")
        name = layer_of(stem)
        layer = base_layer(base_model.get_submodule(name))
        with torch.no_grad():
            changes[name] = _change(config, name, layer, (down.float(), up.float(), magnitude))
    return changes


def plain(
    factors: Factors, layers: list[Target], base_name: str, *, rank: int | None = None
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Return configuration and tensors of a plain LoRA adapter of scaling 1 with these factors.

    Factors of smaller rank are padded with zeros: one rank for all layers, without patterns.
    """
    rank = max(rank or 1, *(down.shape[0] for down, _ in factors.values()))
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=targets.target_names(factors.keys(), layers),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    tensors = {}
    for name, (down, up) in factors.items():
        missing = rank - down.shape[0]
        padded = torch.nn.functional.pad(down, (0, 0, 0, missing))
        tensors[key_of(name, "lora_A.weight")] = padded.cpu().float().contiguous()
        padded = torch.nn.functional.pad(up, (0, missing))
        tensors[key_of(name, "lora_B.weight")] = padded.cpu().float().contiguous()
    return config, tensors


def _change(
    config: LoraConfig,
    name: str,
    layer: torch.nn.Module,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
) -> Change:
    down, up, magnitude = tensors
    scaling = scaling_of(config, name, down.shape[0])
    if config.use_dora and needs_baking(config):
        raise Unsupported(f"{name} is DoRA on a changed base, which cannot be converted.")
    if config.use_dora or needs_baking(config):
        _require_full_precision(layer)
    if config.use_dora:
        if magnitude is None:
            raise ModelError(f"The magnitudes of {name} are missing.")
        return Change(whole=_dora_change(layer, down, up * scaling, magnitude.float()))
    if not needs_baking(config):
        return Change((down, up * scaling))
    return _without_start(config, layer, down, up, alpha_of(config, name))


def _dora_change(
    layer: torch.nn.Module, down: torch.Tensor, up: torch.Tensor, magnitude: torch.Tensor
) -> torch.Tensor:
    """Return W' - W, (outputs, inputs): DoRA scales each row of W + B A to its magnitude.

    Follows Liu et al. 2024, equation 5. down: (rank, inputs); up: (outputs, rank), scaling inside;
    magnitude: (outputs,).
    """
    weight = base_weight(layer).cpu()
    moved = weight + up @ down
    lengths = torch.linalg.norm(moved, dim=1, keepdim=True)
    return magnitude.view(-1, 1) / lengths * moved - weight


def _without_start(
    config: LoraConfig, layer: torch.nn.Module, down: torch.Tensor, up: torch.Tensor, alpha: float
) -> Change:
    """Subtract the initial B0 A0, which PEFT computes on a copy of the layer, from the adapter."""
    copied = copy.deepcopy(layer).requires_grad_(False)
    own = copy.deepcopy(config)
    own.inference_mode = True
    before = base_weight(copied).clone()
    started = PeftLinear(
        copied,
        "start",
        own,
        r=down.shape[0],
        lora_alpha=alpha,
        fan_in_fan_out=isinstance(layer, Conv1D),
        is_target_conv_1d_layer=isinstance(layer, Conv1D),
    )
    scaling = float(started.scaling["start"])
    down0 = started.lora_A["start"].weight.detach().float()
    up0 = started.lora_B["start"].weight.detach().float()
    down, up = down.to(down0.device), up.to(up0.device)
    wanted = base_weight(started.get_base_layer()) - before + scaling * up @ down
    factors = torch.cat([down, down0]), torch.cat([scaling * up, -scaling * up0], dim=1)
    residue = float(torch.linalg.norm(factors[1] @ factors[0] - wanted))
    size = float(torch.linalg.norm(wanted))
    tolerances.require_finite([residue, size], "An adapter's change of a weight")
    return Change(factors, error=residue / size if size else residue)


def base_weight(layer: torch.nn.Module) -> torch.Tensor:
    """Return a layer's weight, (outputs, inputs), fp32."""
    weight = dequantize_module_weight(layer).detach().float()
    return weight.T if isinstance(layer, Conv1D) else weight


def _require_full_precision(layer: torch.nn.Module) -> None:
    """Raise Unsupported where the base is quantised, so that its weights are only approximate.

    The result would be kept as valid for the full-precision base.
    """
    weight = layer.weight
    if not (isinstance(weight, torch.Tensor) and weight.is_floating_point()):
        raise Unsupported(
            "Turning this kind of adapter into plain LoRA needs the base's own weights, and this "
            "base is loaded quantised.",
            cure="Load the base without quantisation, do it there, and then load it quantised: "
            "the plain LoRA fits both.",
        )


def _magnitude(tensors: dict[str, torch.Tensor], stem: str) -> torch.Tensor | None:
    for ending in (".lora_magnitude_vector", ".lora_magnitude_vector.weight"):
        if stem + ending in tensors:
            return tensors[stem + ending]
    return None


def _require_repeatable(config: LoraConfig, name: str) -> None:
    if init_methods.is_unrepeatable(config.init_lora_weights):
        start = init_methods.name_of(config.init_lora_weights)
        raise Unsupported(
            f"{name} was initialised with {start}, which cannot be recomputed from the base.",
            cure="Export it as plain LoRA where it was trained.",
        )
