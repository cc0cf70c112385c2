"""Rows: answers in progress, and the choice of their next tokens.

Each answer is the same as if it were computed alone. Rows of a batch are independent except for
rounding: a product of several rows may differ in its last bits from that of a row alone. So where
the two most likely tokens of a row are closer than rounding can move them, the row's scores are
computed alone, and those decide. A row that has been alone so far is right as it is.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from backend.engine.core import tolerances
from backend.engine.inference.sampling import NEXT_TOKEN, Sampler
from backend.engine.inference.text_streaming import TextStream

# Two scores closer than this, relative to max(1, |largest score|), may swap by rounding. Well above
# the largest difference between a row alone and in a batch
# (tests/engine/inference/test_batched_decoding.py). In half precision, where every tenth token is
# that close, rows share a batch only if it changes no bit of them.
MARGIN = 1e-4

TEXT_EVERY_S = 0.1
"""How often text is sent while it comes: each time takes a core from the next token."""

Alone = Callable[["Row"], torch.Tensor]
"""Returns one row's next scores, (vocabulary,), float32, computed as if it were alone."""


@dataclass
class Row:
    """One answer in progress. `adapter` is the id of this row's adapter, BASE_ROW, or None.

    None means the model's active adapters; such a row is always alone in its batch.
    """

    prompt: list[int]
    adapter: str | None
    sampler: Sampler
    room: int
    on_text: Callable[[str], None]
    words: TextStream
    tokens: list[int] = field(default_factory=list)
    shared: bool = False
    """Whether its cache was computed in a batch that may round in another way than a row alone."""

    close_calls: int = 0
    seconds: float = 0.0
    _read: int = 0
    _sent: float = -math.inf

    def take(self, token: int, ends: Sequence[int]) -> bool:
        """Add a token, and now and then stream the words that are complete.

        Returns True once the answer ends; then all of its text has been streamed.
        """
        self.tokens.append(token)
        ended = token in ends or len(self.tokens) >= self.room
        if ended or time.monotonic() - self._sent >= TEXT_EVERY_S:
            self._stream(ended=ended)
        return ended

    def stop(self, seconds: float) -> None:
        """End an answer before its end, and stream what is still held back."""
        self.seconds = seconds
        self._stream(ended=True)

    def _stream(self, *, ended: bool) -> None:
        text = self.words.add(*self.tokens[self._read :]) + (self.words.end() if ended else "")
        self._read = len(self.tokens)
        if text:
            self._sent = time.monotonic()
            self.on_text(text)


def take_tokens(
    going: Sequence[Row], scores: torch.Tensor, ends: Sequence[int], alone: Alone
) -> list[int]:
    """Choose each row's next token; return the numbers of the rows that ended.

    scores: (rows, vocabulary), float32. Raises ModelError where a score is not finite.
    """
    noises = [row.sampler.draw(scores.shape[-1]) for row in going]
    if any(noise is not None for noise in noises):
        pairs = zip(going, scores, noises, strict=True)
        chosen = torch.stack([row.sampler.apply(each, noise) for row, each, noise in pairs])
    else:
        chosen = scores
    largest, indices = chosen.max(dim=-1)
    if not all(map(math.isfinite, largest.tolist())):  # NaN is the largest of all
        tolerances.require_finite(scores.amax(dim=-1).tolist(), NEXT_TOKEN)
    tokens: list[int] = indices.tolist()
    for index, row in enumerate(going):
        if row.shared and _is_close(chosen[index], scores[index], row.sampler.temperature):
            row.close_calls += 1
            tokens[index] = int(row.sampler.apply(alone(row), noises[index]).argmax())
    return [index for index, row in enumerate(going) if row.take(tokens[index], ends)]


def _is_close(chosen: torch.Tensor, scores: torch.Tensor, temperature: float) -> bool:
    first, second = chosen.topk(2).values.tolist()
    size = max(scores.abs().max().item(), 1.0)
    return not (first - second) / size > MARGIN / (temperature or 1.0)
