"""The mathematics of blending one layer: eleven methods, each as PEFT's `add_weighted_adapter`.

Pruning, sign election and sums are PEFT's own functions. What differs is the way to a truncated
singular value decomposition, and that rsLoRA ingredients come out right (PEFT 0.21.2 scales such a
blend by another sqrt(rank)).
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
"""One layer's ingredients with their weights in the scaling."""


def blend_layer(parts: Parts, weights: Sequence[float], request: Combine, rank: int) -> Factor:
    """Blend one layer's changes into one of scaling 1 and at most `rank` (cat: the ranks' sum)."""
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

    The same product as the SVD of B x A, which it never forms; where singular values tie at the
    cut, another one of the same distance.
    """
    q_b, r_b = torch.linalg.qr(total.b.double())
    q_a, r_a = torch.linalg.qr((total.a * total.scaling).double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    kept = min(rank, s.numel())
    b = q_b @ (u[:, :kept] * s[:kept])
    return Factor((vh[:kept] @ q_a.T).float(), b.float())


def truncated(change: torch.Tensor, rank: int) -> Factor:
    """Return the closest factors of a change that has none.

    The leading singular vectors of the shorter side are eigenvectors of its Gram matrix; in double
    precision they are as good as those of an SVD, at a fraction of its cost.
    """
    wide = change.shape[0] <= change.shape[1]
    side = change if wide else change.T
    full = side.double()
    vectors = torch.linalg.eigh(full @ full.T).eigenvectors[:, -min(rank, len(side)) :].flip(1)
    short, long = vectors.float(), (vectors.T @ full).float()
    return Factor(long, short) if wide else Factor(short.T.contiguous(), long.T.contiguous())


def _stack(weighted: Parts) -> Factor:
    """Return the exact sum; where its rank is beyond the layer's own, of the layer's rank."""
    total = stacked(weighted)
    return total if total.rank <= total.limit else compressed(total, total.limit)


def _mix(parts: Parts, weights: Sequence[float], request: Combine) -> Factor:
    """Merge A and B apart, each with the root of its weight; the sign goes to A."""
    strengths = [weight * part.scaling for part, weight in zip(parts, weights, strict=True)]
    roots = [math.sqrt(abs(strength)) for strength in strengths]
    signed = [root if s >= 0 else -root for root, s in zip(roots, strengths, strict=True)]
    a = _merge([part.a for part in parts], signed, request)
    return Factor(a, _merge([part.b for part in parts], roots, request))


def _merge(tensors: list[torch.Tensor], weights: Sequence[float], request: Combine) -> torch.Tensor:
    """Merge tensors of one shape with PEFT's function for the method."""
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
        # at density 1 PEFT warns that nothing is pruned, which is what was asked for
        warnings.filterwarnings("ignore", message="The density")
        merged: torch.Tensor = way(tensors, torch.tensor(weights))
    return merged


def draw_as_peft(shapes: Sequence[tuple[int, int]], rank: int) -> None:
    """Use up the random numbers that PEFT draws before it blends.

    `add_weighted_adapter` first makes the new adapter's layers (inputs, outputs), in the model's
    order, and their first weights are random; only then dare draws. So the same seed leaves out the
    same numbers here as there, for ingredients with the usual start and on a processor.
    """
    for inputs, outputs in shapes:
        a = torch.nn.Linear(inputs, rank, bias=False)
        torch.nn.Linear(rank, outputs, bias=False)
        torch.nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
