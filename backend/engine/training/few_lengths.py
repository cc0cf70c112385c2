"""A small set of pack lengths, for training in half precision on a processor.

There oneDNN compiles every matrix product again for each new number of tokens, and keeps the
kernels (torch 2.13): a fifth of a run's time, and gigabytes. So packs are padded to few lengths.
The padding is one more document of meaningless tokens without loss. Rows get longer, or more, so
that rows times tokens is one of the few lengths. A document that is computed alone gets no padding.
"""

import math
from typing import Any

import torch
from torch.nn.functional import pad

SMALLEST = 32
"""In tokens; also twice the rows of an AMX tile."""
LENGTHS_PER_DOUBLING = 16
MORE_ROWS = 3
"""Rows that may be added to a batch of rows."""


def wanted(model: torch.nn.Module, device: torch.device) -> bool:
    """Tell whether oneDNN would now compile kernels for each length."""
    if device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") != torch.float32
    return next(model.parameters()).dtype != torch.float32


def rounded(batch: dict[str, Any], longest: int = 0) -> dict[str, Any]:
    """Return a pack padded to the next allowed length, and its `keep` likewise; padding comes last.

    input_ids, position_ids: (1, tokens), or input_ids, attention_mask: (rows, tokens), int64; keep:
    (kept,), int64. No row gets longer than `longest` tokens, which the model reads; 0 is no limit.
    """
    if "attention_mask" in batch:
        return _rounded_rows(batch, longest)
    if "position_ids" not in batch:
        return batch
    ids, keep = batch["input_ids"], batch["keep"]
    more = round_up(ids.shape[1]) - ids.shape[1]
    positions = torch.arange(more, device=ids.device)[None]
    return batch | {
        "input_ids": pad(ids, (0, more)),
        "position_ids": torch.cat([batch["position_ids"], positions], dim=1),
        "keep": pad(keep, (0, round_up(len(keep)) - len(keep))),
    }


def _rounded_rows(batch: dict[str, Any], longest: int) -> dict[str, Any]:
    """Pad rows at their ends, and add rows, whose tokens count as real but have no loss."""
    ids, keep = batch["input_ids"], batch["keep"]
    height, width = ids.shape
    more_rows, tokens = _few_sizes(height, width, longest)
    row, column = keep // width, keep % width
    mask = pad(batch["attention_mask"], (0, tokens - width))
    kept = row * tokens + column
    return batch | {
        "input_ids": pad(ids, (0, tokens - width, 0, more_rows - height)),
        "attention_mask": pad(mask, (0, 0, 0, more_rows - height), value=1),
        "keep": pad(kept, (0, round_up(len(keep)) - len(keep))),
    }


def _few_sizes(rows: int, tokens: int, longest: int) -> tuple[int, int]:
    """Return the smallest size, at least (rows, tokens), whose product is an allowed length."""
    found = [(rows * tokens, rows, tokens)] if round_up(rows * tokens) == rows * tokens else []
    for more in range(rows, rows + MORE_ROWS + 1):
        unit = _step(more * tokens) // math.gcd(_step(more * tokens), more)
        wider = -(-tokens // unit) * unit
        if round_up(more * wider) == more * wider and not 0 < longest < wider:
            found.append((more * wider, more, wider))
    _, rows, tokens = min(found, default=(0, rows, tokens))
    return rows, tokens


def round_up(length: int) -> int:
    """Return the next allowed length in tokens: at most a sixteenth or 31 tokens more."""
    return -(-length // _step(length)) * _step(length)


def _step(length: int) -> int:
    return max(SMALLEST, (1 << length.bit_length()) // (2 * LENGTHS_PER_DOUBLING))
