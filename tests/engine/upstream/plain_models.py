"""Tiny models with adapters on them, by plain PEFT alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from tests.engine.tiny import fresh

IDS = torch.arange(5, 25)[None]
WEIGHTS = "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"
Write = Callable[..., Path]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS, use_cache=False).logits
    return found


def load(base: Path, folder: Path, name: str = "default") -> PeftModel:
    return PeftModel.from_pretrained(fresh(base), folder, adapter_name=name).eval()


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def lora_layers(model: torch.nn.Module) -> dict[str, LoraLayer]:
    return {key: part for key, part in model.named_modules() if isinstance(part, LoraLayer)}


def set_strength(model: torch.nn.Module, strength: float, name: str = "default") -> None:
    for layer in lora_layers(model).values():
        layer.set_scale(name, strength)


def changes(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    layers = lora_layers(model).items()
    return {key: layer.get_delta_weight(name).detach() for key, layer in layers}


def gap(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    return max(distance(left[key], right[key]) for key in right)
