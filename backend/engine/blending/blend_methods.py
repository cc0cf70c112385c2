"""The mathematics of blending one layer: eleven methods, as PEFT's `add_weighted_adapter`.

Pruning, sign election and sums are PEFT's own functions (TIES: Yadav et al. 2023; DARE: Yu et al.
2023). Two things differ: how the truncated SVD is computed, and rsLoRA ingredients are scaled
correctly (PEFT 0.21.2 scales such a blend by another sqrt(rank)). Knows nothing of files.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.utils import merge_utils

from backend.engine.methods.low_rank import Factor, stacked
from backend.requests import Combine

Parts = Sequence[Factor]
"""One layer's ingredients, with their weights included in the scaling."""


def blend_layer(parts: Parts, weights: Sequence[float], request: Combine, rank: int) -> Factor:
    """Blend one layer's changes into one of scaling 1 and at most `rank` (cat: sum of the ranks).

    parts: A (rank, inputs) and B (outputs, rank) of each ingredient, fp32; returns the same.
    """
    weighted = [part.times(weight) for part, weight in zip(parts, weights, strict=True)]
    if request.method == "cat":
        return _stack(weighted)
    if request.method == "svd":
        return compressed(stacked(weighted), rank)
    if request.method.endswith("_svd"):
        change = _merge([part.change() for part in parts], weights, request)
        return truncated(change, rank)
    return _mix(parts, weights, request)


def compressed(total: Factor, rank: int) -> Factor:
    """Return the closest change of a lower rank: QR of the factors, then an SVD of the small core.

    Gives the same product as the truncated SVD of B x A without forming it. Where equal singular
    values are at the cut, another product at the same distance is possible. Computes in float64.
    """
    q_b, r_b = torch.linalg.qr(total.b.double())
    q_a, r_a = torch.linalg.qr((total.a * total.scaling).double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    kept = min(rank, s.numel())
    b = q_b @ (u[:, :kept] * s[:kept])
    return Factor((vh[:kept] @ q_a.T).float(), b.float())


def truncated(change: torch.Tensor, rank: int) -> Factor:
    """Return the closest factors of a change, (outputs, inputs), that has no factors yet.

    The leading singular vectors of the shorter side are eigenvectors of its Gram matrix. In float64
    they are as good as those of an SVD, at a fraction of the cost.
    """
    wide = change.shape[0] <= change.shape[1]
    side = change if wide else change.T
    full = side.double()
    vectors = torch.linalg.eigh(full @ full.T).eigenvectors[:, -min(rank, len(side)) :].flip(1)
    short, long = vectors.float(), (vectors.T @ full).float()
    return Factor(long, short) if wide else Factor(short.T.contiguous(), long.T.contiguous())


def _stack(weighted: Parts) -> Factor:
    """Return the exact sum, compressed to the layer's full rank where its rank is higher."""
    total = stacked(weighted)
    return total if total.rank <= total.limit else compressed(total, total.limit)


def _mix(parts: Parts, weights: Sequence[float], request: Combine) -> Factor:
    """Merge A and B separately, each with the square root of its weight; A takes the sign."""
    strengths = [weight * part.scaling for part, weight in zip(parts, weights, strict=True)]
    roots = [math.sqrt(abs(strength)) for strength in strengths]
    signed = [root if s >= 0 else -root for root, s in zip(roots, strengths, strict=True)]
    a = _merge([part.a for part in parts], signed, request)
    return Factor(a, _merge([part.b for part in parts], roots, request))


def _merge(tensors: list[torch.Tensor], weights: Sequence[float], request: Combine) -> torch.Tensor:
    """Merge tensors of the same shape with PEFT's function for the method."""
    density, sign = request.density, request.majority_sign
    ways: dict[str, Callable[..., Any]] = {
        "linear": merge_utils.task_arithmetic,
        "ties": lambda t, w: merge_utils.ties(t, w, density, sign),
        "dare_linear": lambda t, w: merge_utils.dare_linear(t, w, density),
        "dare_ties": lambda t, w: merge_utils.dare_ties(t, w, density, sign),
        "magnitude_prune": lambda t, w: merge_utils.magnitude_prune(t, w, density),
    }
    way = ways[request.method.removesuffix("_svd")]
    with warnings.catch_warnings():
        # at density 1 PEFT warns that nothing is pruned, but that was requested
        warnings.filterwarnings("ignore", message="The density")
        merged: torch.Tensor = way(tensors, torch.tensor(weights))
    return merged


def draw_as_peft(shapes: Sequence[tuple[int, int]], rank: int) -> None:
    """Draw and discard the random numbers that PEFT draws before it blends.

    `add_weighted_adapter` first creates the new adapter's layers (inputs, outputs), in the model's
    order, with random initial weights; only then does dare draw. So the same seed prunes the same
    values here as in PEFT, for ingredients with the default initialisation and on a processor.
    """
    for inputs, outputs in shapes:
        a = torch.nn.Linear(inputs, rank, bias=False)
        torch.nn.Linear(rank, outputs, bias=False)
        torch.nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
