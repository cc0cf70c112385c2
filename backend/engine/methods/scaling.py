"""Rank, alpha and scaling of a layer, as PEFT computes them from an adapter's configuration."""

import math

from peft import LoraConfig
from peft.utils.other import get_pattern_key


def rank_of(config: LoraConfig, layer: str) -> int:
    """Return the rank of one layer, from `rank_pattern` or `r`."""
    return int(config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), layer), config.r))


def alpha_of(config: LoraConfig, layer: str) -> float:
    """Return the alpha of one layer, from `alpha_pattern` or `lora_alpha`."""
    key = get_pattern_key(list(config.alpha_pattern), layer)
    return float(config.alpha_pattern.get(key, config.lora_alpha))


def scaling_of(config: LoraConfig, layer: str, rank: int) -> float:
    """Return alpha / rank of one layer (Hu et al. 2021), or alpha / sqrt(rank) for rsLoRA
    (Kalajdzievski 2023)."""
    return alpha_of(config, layer) / (math.sqrt(rank) if config.use_rslora else rank)
