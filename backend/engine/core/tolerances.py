"""How much two results may differ before an operation counts as wrong, and how that is measured."""

import math
from collections.abc import Iterable

import torch

from backend.engine.core.dtypes import DTYPES
from backend.errors import ModelError, VerificationFailed

# Largest difference of log-probabilities, relative to max(1, |value|), by the type that computes.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}

# Largest difference of a merged weight from the same computed in float64, per adapter, relative to
# the largest intermediate number.
WEIGHT_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# The same for quantised bases, whatever the dtype around their layers. Their weights are fixed
# numbers, so a computation repeats as exactly as its dtype allows. On a GPU, 8-bit layers quantise
# their inputs, too: by row, with outliers by batch.
INT8_ON_GPU = 5e-2


def bound(precision: str, quantization: str, device: str) -> float:
    """Return how much results of a base may differ, relative to max(1, |value|)."""
    return max(BOUNDS[DTYPES[precision]], coarseness(quantization, device))


def coarseness(quantization: str, device: str) -> float:
    """Return how much results may differ only because of how quantised layers compute."""
    return INT8_ON_GPU if quantization == "int8" and device != "cpu" else 0.0


def relative_difference(left: list[float], right: list[float]) -> float:
    """Return the largest |left - right| / max(1, |right|); NaN where one of them is NaN."""
    pairs = zip(left, right, strict=True)
    found = [abs(a - b) / max(1.0, abs(b)) for a, b in pairs]
    if any(map(math.isnan, found)):  # `max` would ignore them
        return math.nan
    return max(found, default=0.0)


def require_finite(values: Iterable[float], what: str) -> None:
    """Raise ModelError where the model computed a number that is not finite."""
    wrong = [value for value in values if not math.isfinite(value)]
    if wrong:
        raise ModelError(
            f"{what} is {wrong[0]}: the model computes numbers that are not finite.",
            cure="Its weights may be damaged, or too large for fp16: download them again, or load "
            "the base in bf16 or fp32. A very large adapter strength has the same effect.",
        )


def require_close(
    left: list[float],
    right: list[float],
    *,
    dtype: torch.dtype,
    what: str,
    cure: str = "",
    allowed: float = 0.0,
) -> float:
    """Return the relative difference; raise VerificationFailed where it is above the bound.

    The bound is that of `dtype`, or `allowed` where that is wider (`Base.bound`).
    """
    difference = relative_difference(left, right)
    limit = max(BOUNDS[dtype], allowed)
    if not difference <= limit:  # also catches NaN
        raise VerificationFailed(
            f"{what}: the answers differ by {difference:.1e}, more than the allowed {limit:.0e}.",
            cure=cure or "Nothing was kept. Please report this with the run's log.",
        )
    return difference
