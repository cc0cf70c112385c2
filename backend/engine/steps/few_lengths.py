"""A small set of pack lengths, for training in half precision on a processor.

There oneDNN compiles every matrix product again for each new number of tokens, and keeps the
kernels (torch 2.13): a fifth of a run's time, and gigabytes. So packs are padded to few lengths.
The padding is one more document of meaningless tokens without loss. Rows are padded to few lengths
of their own, and a document that is computed alone is not padded.
"""

from typing import Any

import torch
from torch.nn.functional import pad

SMALLEST = 32
"""In tokens; also twice the rows of an AMX tile."""
LENGTHS_PER_DOUBLING = 16
SMALLEST_ROW, ROWS_PER_DOUBLING = 8, 8
"""Of rows there are mostly as many as fit into a batch, so their length decides the size."""


def wanted(model: torch.nn.Module, device: torch.device) -> bool:
    """Tell whether oneDNN would now compile kernels for each length."""
    if device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") != torch.float32
    return next(model.parameters()).dtype != torch.float32


def rounds(device: torch.device, computed: str) -> bool:
    """Tell the same of a run whose steps are computed in such a precision."""
    return device.type == "cpu" and computed != "fp32"


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
    """Pad rows at their ends, where they are masked."""
    ids, keep = batch["input_ids"], batch["keep"]
    width = ids.shape[1]
    more = row_length(width, longest) - width
    return batch | {
        "input_ids": pad(ids, (0, more)),
        "attention_mask": pad(batch["attention_mask"], (0, more)),
        "keep": pad(keep + keep // width * more, (0, round_up(len(keep)) - len(keep))),
    }


def row_length(length: int, longest: int = 0) -> int:
    """Return the next allowed length of rows in tokens: at most an eighth or 7 tokens more."""
    step = max(SMALLEST_ROW, (1 << length.bit_length()) // (2 * ROWS_PER_DOUBLING))
    found = -(-length // step) * step
    return max(length, min(found, longest)) if longest else found


def round_up(length: int) -> int:
    """Return the next allowed length in tokens: at most a sixteenth or 31 tokens more."""
    step = max(SMALLEST, (1 << length.bit_length()) // (2 * LENGTHS_PER_DOUBLING))
    return -(-length // step) * step
