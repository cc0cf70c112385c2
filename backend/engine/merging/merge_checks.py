"""The checks of a merge: recomputed rows, finite numbers, and files read back.

Knows nothing of adapters or models."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from backend.engine.core import tolerances
from backend.engine.merging.safetensors_io import Planned
from backend.errors import VerificationFailed


class Shard(NamedTuple):
    """One file to write: its name and its tensors in order."""

    name: str
    tensors: list[Planned]


def compare(
    key: str, found: torch.Tensor, expected: torch.Tensor, largest: torch.Tensor, *, parts: int
) -> None:
    """Raise VerificationFailed where a merged row does not match the formula.

    found: (inputs,), the stored dtype; expected, largest: (inputs,), float64. Each number has its
    own bound: relative to the row's largest number, a missing weak adapter would look like
    rounding.
    """
    bounds = tolerances.WEIGHT_BOUNDS[found.dtype] * parts * largest
    differences = (found.double() - expected).abs()
    if not bool((differences <= bounds).all()):  # also catches NaN
        worst = int((differences - bounds).nan_to_num(torch.inf).argmax())
        raise VerificationFailed(
            f"A recomputed row of {key} differs by {differences[worst]:.1e}, more than "
            f"{bounds[worst]:.0e}.",
            cure="Nothing was kept. Check the adapters with Inspect.",
        )


def finite(
    tensor: torch.Tensor, planned: Planned, *, was: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the tensor; raises VerificationFailed where it is not finite but was before."""
    if was is not None and (was.dtype == tensor.dtype or not tensor.is_floating_point()):
        return tensor  # copied unchanged
    if tensor.numel() and not all_finite(tensor) and (was is None or all_finite(was)):
        raise VerificationFailed(
            f"{planned.key} contains numbers that are not finite after merging.",
            cure="Nothing was kept. Lower the strengths"
            + (", or choose bf16 or fp32." if planned.dtype == "F16" else "."),
        )
    return tensor


def read_back(folder: Path, shards: list[Shard], rows: dict[str, tuple[int, torch.Tensor]]) -> None:
    """Raise VerificationFailed where safetensors reads other tensors than were written."""
    for shard in shards:
        planned = {each.key: each for each in shard.tensors}
        with safe_open(folder / shard.name, framework="pt") as file:
            same = set(file.keys()) == set(planned)
            for key, each in planned.items() if same else ():
                part = file.get_slice(key)
                same &= tuple(part.get_shape()) == each.shape and part.get_dtype() == each.dtype
                if same and key in rows:
                    index, row = rows[key]
                    same = torch.equal(part[index : index + 1][0], row)
        if not same:
            raise VerificationFailed(f"{shard.name} reads back differently from what was written.")


def all_finite(tensor: torch.Tensor) -> bool:
    """Tell whether all numbers are finite, without a temporary tensor of the same size."""
    low, high = tensor.aminmax()
    return bool(torch.isfinite(low) and torch.isfinite(high))
