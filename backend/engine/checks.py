"""How far two results may lie apart before an operation counts as wrong, and the measure."""

import torch

from backend.errors import VerificationFailed

# Largest difference of log-probabilities, relative to max(1, |value|), by the type that computes.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}

# Largest difference of a merged weight from the same computed in float64, for each adapter and
# relative to the largest number on the way.
WEIGHT_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def relative_difference(left: list[float], right: list[float]) -> float:
    """Return the largest |left - right| / max(1, |right|)."""
    pairs = zip(left, right, strict=True)
    return max((abs(a - b) / max(1.0, abs(b)) for a, b in pairs), default=0.0)


def require_close(
    left: list[float], right: list[float], *, dtype: torch.dtype, what: str, cure: str = ""
) -> float:
    """Return the relative difference; raises VerificationFailed where it is beyond the bound."""
    difference = relative_difference(left, right)
    bound = BOUNDS[dtype]
    if not difference <= bound:  # also catches NaN
        raise VerificationFailed(
            f"{what}: the answers differ by {difference:.1e}, more than the allowed {bound:.0e}.",
            cure=cure or "Nothing was kept. Please report this with the run's log.",
        )
    return difference
