"""Rows: each document in a padded row of its own, or in a forward pass of its own.

For models in which packed documents would influence each other. Documents of similar length share
a batch, so that little is padding, and rows times the longest row stay within the tokens per batch.
Padding comes last in a row, is masked, and has no loss. Knows nothing of models.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from backend.engine.data.token_arrays import Tokens

WINDOW = 16
"""Batches' worth of documents that are sorted by length at a time: more leave less padding, fewer
leave the order more random."""


def fill(
    lengths: list[int], order: list[int], budget: int, generator: random.Random
) -> list[list[int]]:
    """Fill batches; within windows of the order, documents are sorted by length.

    The batches of a window come in random order, so that long documents do not come first.
    """
    batches: list[list[int]] = []
    for window in _windows(lengths, order, budget):
        inside = sorted_by_length(lengths, window, budget)
        generator.shuffle(inside)
        batches.extend(inside)
    return batches


def sorted_by_length(lengths: list[int], numbers: list[int], budget: int) -> list[list[int]]:
    """Fill batches, the longest documents first; rows times the longest stay within `budget`."""
    batches: list[list[int]] = []
    for number in sorted(numbers, key=lambda each: lengths[each], reverse=True):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > budget:
            batches.append([])
        batches[-1].append(number)
    return batches


def _windows(lengths: list[int], order: list[int], budget: int) -> Iterator[list[int]]:
    window: list[int] = []
    tokens = 0
    for number in order:
        window.append(number)
        tokens += lengths[number]
        if tokens >= WINDOW * budget:
            yield window
            window, tokens = [], 0
    if window:
        yield window


def computed(lengths: list[int]) -> int:
    """Return the positions of a batch with these documents, padding included."""
    return len(lengths) * max(lengths)


def collate(documents: list[Tokens]) -> dict[str, Any]:
    """Put each document into a row, the longest first.

    Returns input_ids, attention_mask: (rows, longest), int64, 0 where there is padding; keep:
    (kept,), int64, the positions whose logits are needed, counted through all rows; labels:
    (kept,), int64, the tokens they predict.
    """
    documents = sorted(documents, key=len, reverse=True)
    shape = len(documents), len(documents[0])
    ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    learned = np.zeros(shape, dtype=bool)
    for row, each in enumerate(documents):
        ids[row, : len(each)] = each.ids
        mask[row, : len(each)] = 1
        learned[row, : len(each)] = each.learned
    learned[:, 0] = False  # nothing predicts a document's first token
    targets = np.flatnonzero(learned)
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "keep": torch.from_numpy(targets - 1),
        "labels": torch.from_numpy(ids.reshape(-1)[targets]),
    }


def collate_alone(documents: list[Tokens]) -> dict[str, Any]:
    """Make a batch whose documents are computed one after the other, without padding.

    Returns singles: for each document input_ids (1, tokens), keep and labels (kept,), all int64;
    and the labels of all of them.
    """
    singles = []
    for each in sorted(documents, key=len, reverse=True):
        row = collate([each])
        del row["attention_mask"]
        singles.append(row)
    return {"singles": singles, "labels": torch.cat([each["labels"] for each in singles])}
