"""The texts that are scored, here and there, and how far scores are apart."""

from collections.abc import Sequence

TEXTS = ("The cat is on the mat.", "Hello! Where are you going today?", "1 + 1 = 2")


def distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the largest |left - right| / max(1, |right|)."""
    pairs = zip(left, right, strict=True)
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)
