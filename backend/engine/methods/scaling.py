"""Rank, alpha and scaling of a layer, as PEFT computes them from an adapter's configuration.

Also which strengths an adapter can have.
"""

import math
import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from peft import LoraConfig

from backend.errors import Unsupported
from backend.results import AdapterInfo


def rank_of(config: LoraConfig, layer: str) -> int:
    """Return the rank of one layer, from `rank_pattern` or `r`."""
    return int(config.rank_pattern.get(matching_key(config.rank_pattern, [layer]), config.r))


def alpha_of(config: LoraConfig, layer: str) -> float:
    """Return the alpha of one layer, from `alpha_pattern` or `lora_alpha`."""
    key = matching_key(config.alpha_pattern, [layer])
    return float(config.alpha_pattern.get(key, config.lora_alpha))


def matching_key(keys: Collection[str], names: Iterable[str]) -> str | None:
    """Return the first key that matches the first of these names of a layer that any matches.

    Follows PEFT's `get_pattern_key`, which compiles every key again for every layer once there are
    more than Python remembers (512).
    """
    matchers = _matchers(tuple(keys))
    found = (key for name in names for key, matcher in matchers if matcher.match(name))
    return next(found, None)


@lru_cache(8)
def _matchers(keys: tuple[str, ...]) -> list[tuple[str, re.Pattern[str]]]:
    return [(key, re.compile(rf"(.*\.)?({key})$")) for key in keys]


def scaling_of(config: LoraConfig, layer: str, rank: int) -> float:
    """Return alpha / rank of one layer (Hu et al. 2021), or alpha / sqrt(rank) for rsLoRA
    (Kalajdzievski 2023)."""
    return alpha_of(config, layer) / (math.sqrt(rank) if config.use_rslora else rank)


def require_strength(info: AdapterInfo, strength: float) -> None:
    """Raise Unsupported where a strength other than 1 has no meaning.

    At scaling 0 a DoRA adapter still differs from the base: its magnitudes do not scale.
    """
    if info.strength == "on-off" and strength != 1.0:
        raise Unsupported(
            f"{info.name!r} is a {info.method} adapter, which works at strength 1 only, got "
            f"{strength:g}.",
            cure="To get the base, leave the adapter out; strength 0 would not give the base.",
        )
