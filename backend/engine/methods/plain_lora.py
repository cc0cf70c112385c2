"""What an adapter does to the base's weights, written down as plain LoRA; exact where that can be.

PiSSA and OLoRA take a part of each base weight into the adapter when they are loaded. Their change
of the base is scaling * (B A - B0 A0), with B0 A0 as PEFT itself computes it from the weight: plain
LoRA of twice the rank. Knows neither session nor library.
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
"""Down (rank x inputs) and up (outputs x rank), at scaling 1."""
Factors = dict[str, Pair]


class Change(NamedTuple):
    """What an adapter adds to one weight: up @ down, or `whole` where that is not low-rank.

    `error` is how far the factors are from what PEFT computes, relative to the change's size.
    """

    factors: Pair | None = None
    whole: torch.Tensor | None = None
    error: float = 0.0


class Baked(NamedTuple):
    """A plain LoRA adapter that does what another kind did; `error` as in `Change`, the largest."""

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
    """Turn a scanned PiSSA or OLoRA folder into plain LoRA that leaves the base alone.

    `base_model` is the base as it was loaded, with or without plain adapters around its layers.
    Raises Unsupported where what the adapter took out of the base cannot be computed again.
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
    """Compute what an adapter folder adds to each weight of the base, with its scaling inside."""
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
            raise ModelError(f"{folder.name} lacks the second half of {stem}.")
        name = layer_of(stem)
        layer = base_layer(base_model.get_submodule(name))
        with torch.no_grad():
            changes[name] = _change(config, name, layer, (down.float(), up.float(), magnitude))
    return changes


def plain(
    factors: Factors, layers: list[Target], base_name: str, *, rank: int | None = None
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Return configuration and tensors of a plain LoRA adapter of scaling 1 with these factors.

    Smaller ones are padded with zeros: one rank for all layers, without patterns.
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
    """Return W' - W: DoRA gives each row of W + B A the length that it learned."""
    weight = base_weight(layer).cpu()
    moved = weight + up @ down
    lengths = torch.linalg.norm(moved, dim=1, keepdim=True)
    return magnitude.view(-1, 1) / lengths * moved - weight


def _without_start(
    config: LoraConfig, layer: torch.nn.Module, down: torch.Tensor, up: torch.Tensor, alpha: float
) -> Change:
    """Let PEFT initialise on a copy of the layer, and take its start out of the adapter."""
    twin = copy.deepcopy(layer).requires_grad_(False)
    own = copy.deepcopy(config)
    own.inference_mode = True
    before = base_weight(twin).clone()
    started = PeftLinear(
        twin,
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
    tolerances.require_finite([residue, size], "What an adapter adds to a weight")
    return Change(factors, error=residue / size if size else residue)


def base_weight(layer: torch.nn.Module) -> torch.Tensor:
    """Return a layer's weight, outputs x inputs, as numbers of full precision."""
    weight = dequantize_module_weight(layer).detach().float()
    return weight.T if isinstance(layer, Conv1D) else weight


def _require_full_precision(layer: torch.nn.Module) -> None:
    """Raise Unsupported where the base's weights are only known roughly.

    What is computed from them would be kept as true of the full-precision base.
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
            f"{name} began with {start}, which cannot be computed again from the base.",
            cure="Export it as plain LoRA where it was trained.",
        )
