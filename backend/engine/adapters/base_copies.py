"""Copies of the base's own weights in an adapter's file: PEFT stores embeddings beside LoRA.

`save_embedding_layers="auto"` writes the embeddings and the output head, mostly unchanged. A copy
that equals the base's is left out; another one would change the base. Compares block by block with
the base's files, so it needs no base in memory. Knows nothing of LoRA.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from backend.files import safetensors_header
from backend.files.safetensors_header import ITEM_BYTES, StoredTensor, blocks

EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")
HEADS = ("lm_head", "embed_out", "output")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
VALUES = 1_000_000
"""Values that are compared at once."""
Verdict = Literal["equal", "rounded", "different", "unknown"]


def base_tensors(folder: Path) -> list[StoredTensor]:
    """Return the tensors of a base's files; raises ModelError where they cannot be read."""
    return safetensors_header.tensors(folder)


def original(key: str, base: list[StoredTensor], *, tied: bool) -> StoredTensor | None:
    """Return the base's tensor of this module and name; None where there is not exactly one.

    A checkpoint may leave out the first part of a path, or name it otherwise. Tied heads are stored
    as the embeddings.
    """
    same = [each for each in base if each.key == key]
    near = [each for each in base if _is_end(key, each.key) or _is_end(each.key, key)]
    found = same or near or [each for each in base if _below(each.key) == _below(key)]
    if not found and tied and _module(key) in HEADS:
        found = [each for each in base if _module(each.key) in EMBEDDINGS]
    return found[0] if len(found) == 1 else None


def compare(copy: StoredTensor, base: StoredTensor) -> Verdict:
    """Compare a copy with the base's tensor, bit for bit.

    "rounded": equal in the lower precision of the two. "unknown": in types that are not compared.
    Raises ModelError or OSError where a file ends too early.
    """
    if copy.shape != base.shape:
        return "different"
    if copy.dtype not in DTYPES or base.dtype not in DTYPES:
        return "unknown"
    lower = base.dtype if ITEM_BYTES[base.dtype] <= ITEM_BYTES[copy.dtype] else copy.dtype
    for one, other in zip(_values(copy), _values(base), strict=True):
        if not torch.equal(_bits(one, lower), _bits(other, lower)):
            return "different"
    return "equal" if copy.dtype == base.dtype else "rounded"


def _values(stored: StoredTensor) -> Iterator[torch.Tensor]:
    """Yield a tensor's values, (up to VALUES,), in its own type."""
    for block in blocks(stored, VALUES * ITEM_BYTES[stored.dtype]):
        yield torch.frombuffer(bytearray(block), dtype=DTYPES[stored.dtype])


def _bits(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return the values' bits in this type, so that -0 and 0 differ and NaN equals itself."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.to(DTYPES[dtype]).view(whole[ITEM_BYTES[dtype]])


def _is_end(short: str, key: str) -> bool:
    return key.endswith(f".{short}")


def _below(key: str) -> str:
    """Return a path from its list of layers on, or module and name: `embed_tokens.weight`."""
    parts = key.split(".")
    first = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[max(first - 1, 0) :])


def _module(key: str) -> str:
    """Return the name of the module that a tensor belongs to: `lm_head` of `lm_head.weight`."""
    return key.split(".")[-2] if "." in key else ""
