"""Direct decoding: answers computed from a model's weights, rows side by side.

Each prompt is computed alone, and each row has a cache of its own; only the products with the
base's weights are shared. Knows nothing of conversations.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from backend.engine.inference.direct_model import Changes, DirectModel, Segment
from backend.engine.inference.prompts import end_tokens
from backend.engine.inference.row_cache import RowCache
from backend.engine.inference.rows import Row, take_tokens


@dataclass
class DirectRow:
    """A row with its cache, which may hold the beginning of its prompt, and its adapters' part.

    `first_scores`, (vocabulary,), float32: those after the prompt, where they are known.
    """

    row: Row
    changes: Changes
    cache: RowCache
    first_scores: torch.Tensor | None = None

    def next_tokens(self) -> list[int]:
        """Return the tokens that the cache does not hold yet."""
        known, prompt = len(self.cache), self.row.prompt
        if known >= len(prompt):
            return self.row.tokens[known - len(prompt) :]
        return [*prompt[known:], *self.row.tokens]

    def segment(self) -> Segment:
        return Segment(self.cache, self.changes, self.next_tokens())


def answer_rows(
    direct: DirectModel,
    rows: Sequence[DirectRow],
    should_stop: Callable[[], bool],
    *,
    exact: bool,
) -> None:
    """Compute the answers of all rows, token by token; a stop keeps the tokens so far.

    `exact`: whether a row has the same bits in company as alone.
    """
    started, ends = time.monotonic(), end_tokens(direct.base)
    going: list[DirectRow] = []
    with torch.inference_mode():
        for each in rows:
            if should_stop():
                break
            each.first_scores = _after_prompt(direct, each)
            if take_tokens([each.row], each.first_scores[None], ends, _never):
                each.row.seconds = time.monotonic() - started
            else:
                going.append(each)
        while going and not should_stop():
            for ended in reversed(_step(direct, going, ends, exact=exact)):
                going.pop(ended).row.seconds = time.monotonic() - started
    for each in going:
        each.row.stop(time.monotonic() - started)


def _after_prompt(direct: DirectModel, each: DirectRow) -> torch.Tensor:
    """Return the scores after a prompt, (vocabulary,), computed as far as they are not known."""
    if each.first_scores is not None and len(each.cache) == len(each.row.prompt):
        return each.first_scores
    return direct.scores([each.segment()])[0].clone()


def _step(
    direct: DirectModel, going: list[DirectRow], ends: Sequence[int], *, exact: bool
) -> list[int]:
    """Choose one token for each row; return the numbers of those that ended."""
    by_row = {id(each.row): each for each in going}
    for each in going:
        each.row.shared = not exact and (each.row.shared or len(going) > 1)
    scores = direct.scores([each.segment() for each in going])
    return take_tokens(
        [each.row for each in going],
        scores,
        ends,
        lambda row: _alone(direct, by_row[id(row)]),
    )


def _alone(direct: DirectModel, each: DirectRow) -> torch.Tensor:
    """Compute a row's answer so far once more, alone; return its next scores, (vocabulary,).

    Its cache then holds what it would hold if it had always been alone.
    """
    row, cache = each.row, each.cache
    cache.crop(len(row.prompt))
    for token in row.tokens:
        scores = direct.scores([Segment(cache, each.changes, [token])])
    row.shared = False
    return scores[0]


def _never(row: Row) -> torch.Tensor:
    raise AssertionError("A prompt is computed alone.")
