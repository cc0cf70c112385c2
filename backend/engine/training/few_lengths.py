"""Few lengths of packs where a processor computes in half precision.

There oneDNN compiles every matrix product anew for each new number of tokens, and keeps what it
compiled (torch 2.13): a fifth of a run's time, and gigabytes. So packs are filled up to few lengths
with tokens of no meaning, as one more document, from which nothing is learned.
"""

from typing import Any

import torch
from torch.nn.functional import pad

SMALLEST = 32
"""Tokens; also the rows of a tile of AMX, twice."""
LENGTHS_PER_DOUBLING = 16


def wanted(model: torch.nn.Module, device: torch.device) -> bool:
    """Tell whether the model would compile something for each length now."""
    if device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") != torch.float32
    return next(model.parameters()).dtype != torch.float32


def rounded(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a pack filled up to the next of few lengths, and the positions it keeps likewise.

    input_ids, position_ids: (1, tokens), int64; keep: (kept,), int64. What is added comes last.
    """
    ids, keep = batch["input_ids"], batch["keep"]
    more = round_up(ids.shape[1]) - ids.shape[1]
    positions = torch.arange(more, device=ids.device)[None]
    return batch | {
        "input_ids": pad(ids, (0, more)),
        "position_ids": torch.cat([batch["position_ids"], positions], dim=1),
        "keep": pad(keep, (0, round_up(len(keep)) - len(keep))),
    }


def round_up(length: int) -> int:
    """Return the next length that packs may have: at most a sixteenth or 31 tokens more."""
    step = max(SMALLEST, (1 << length.bit_length()) // (2 * LENGTHS_PER_DOUBLING))
    return -(-length // step) * step
