"""Kept answers: keys and values of the last conversations, for their next turns.

What is kept belongs to the base and the adapters as they are now, so every operation but a few
clears it first.
Knows nothing of texts; a conversation is its tokens.
"""

from dataclasses import dataclass

import torch

from backend.engine.core import memory
from backend.engine.inference.direct_decoding import DirectRow
from backend.engine.inference.row_cache import RowCache

MOST_BYTES = 512 * 2**20
MOST_SHARE = 0.1  # of the memory that is available
MOST_ROWS = 16  # side by side has at most so many columns

LEAVE_MODEL = {"chat", "side-by-side", "compare", "score", "next-token", "set-active"}
"""The operations that change neither the base nor an adapter, and need little memory."""

Variant = tuple[tuple[str, float], ...]
"""The adapters of an answer, by id, with their strengths."""


@dataclass(frozen=True, eq=False)
class _Kept:
    variant: Variant
    prompt: list[int]
    cache: RowCache
    first_scores: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        scores = self.first_scores
        return self.cache.nbytes + (0 if scores is None else int(scores.nbytes))


class KeptAnswers:
    """The last answers, the newest last, bounded in number and in bytes."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = []

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._kept)

    def prepare_for(self, operation: str) -> None:
        """Forget everything before an operation that may change the model or need the memory."""
        if operation not in LEAVE_MODEL:
            self.clear()

    def clear(self) -> None:
        """Forget everything, because the model changes or the memory is needed."""
        self._kept.clear()

    def put(self, variant: Variant, row: DirectRow) -> None:
        """Keep an answer; the oldest ones make room for it."""
        row.cache.trim()
        self._kept.append(_Kept(variant, row.row.prompt, row.cache, row.first_scores))
        allowed = min(MOST_BYTES, int(memory.available(row.cache.device) * MOST_SHARE))
        while len(self._kept) > MOST_ROWS or self.nbytes > allowed:
            self._kept.pop(0)

    def lend(self, variant: Variant, row: DirectRow) -> None:
        """Give a new row what an earlier answer of the variant shares with its prompt.

        At least the last token is computed again, unless the scores after it are known. What is
        given is no longer kept: its cache is cropped, and goes on with the new answer. In half
        precision only a conversation that goes on is given one: there a prompt that is computed in
        parts has other last bits, and answers to first questions must not depend on earlier ones.
        """
        prompt, half = row.row.prompt, row.cache.dtype != torch.float32
        best, most = None, 0
        for each in self._kept:
            shared = _shared(each.cache.tokens, prompt)
            goes_on = shared >= len(each.prompt)
            if each.variant == variant and shared > most and (goes_on or not half):
                best, most = each, shared
        if best is None:
            return
        self._kept.remove(best)
        row.cache, same = best.cache, best.prompt == prompt
        row.first_scores = best.first_scores if same else None
        row.cache.crop(most if same else min(most, len(prompt) - 1))


def _shared(left: list[int], right: list[int]) -> int:
    """Return how many tokens two texts begin with in common."""
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
