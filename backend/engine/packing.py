"""Packs: several documents in one row of tokens, isolated from each other by their positions.

A run's packs are a pure function of lengths, budget, epochs and seed, so a resumed run finds its
place by counting. Nothing is padded.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from backend.engine.attention import Layout
from backend.engine.tokens import Tokens
from backend.requests import Train


def plan(lengths: list[int], *, budget: int, epochs: float, seed: int) -> list[list[int]]:
    """Return the packs of a whole run: lists of document numbers, each within the token budget.

    Every epoch sees each document once in a fresh order; a fractional epoch sees its share.
    """
    generator = random.Random(seed)
    packs: list[list[int]] = []
    remaining = epochs
    while remaining > 0:
        order = list(range(len(lengths)))
        generator.shuffle(order)
        packs.extend(
            fill(lengths, order[: max(1, round(len(order) * min(remaining, 1.0)))], budget)
        )
        remaining -= 1
    return packs


def fill(lengths: list[int], order: list[int], budget: int) -> list[list[int]]:
    """Fill packs in order; a pack closes when the next document does not fit."""
    packs: list[list[int]] = []
    room = 0
    for number in order:
        if lengths[number] > room:
            packs.append([])
            room = budget
        packs[-1].append(number)
        room -= lengths[number]
    return packs


def training_packs(documents: list[Tokens], request: Train) -> "Packs":
    """Return the packs of a whole run, in the order in which they are learned."""
    packs = plan(
        [len(document) for document in documents],
        budget=request.tokens_per_step,
        epochs=request.epochs,
        seed=request.seed,
    )
    return Packs(documents, packs, shared_by=request.processes)


def evaluation_packs(documents: list[Tokens], budget: int) -> "Packs":
    """Return held-out documents in packs, each once."""
    lengths = [len(document) for document in documents]
    return Packs(documents, fill(lengths, list(range(len(documents))), budget))


@dataclass
class Packs(torch.utils.data.Dataset[dict[str, Any]]):
    """The packs of a plan as a data set; item i is pack i, ready for the model.

    Several processes take packs in turn, so there are as many items as they can share evenly: those
    beyond the last pack have nothing to learn.
    """

    documents: list[Tokens]
    packs: list[list[int]]
    shared_by: int = 1

    def __len__(self) -> int:
        return -(-len(self.packs) // self.shared_by) * self.shared_by

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self.packs):
            return _nothing_to_learn(self.documents[self.packs[0][0]])
        return collate([self.documents[number] for number in self.packs[index]])

    def tokens(self, index: int) -> int:
        """Return how many tokens pack `index` has."""
        if index >= len(self.packs):
            return 0
        return sum(len(self.documents[number]) for number in self.packs[index])


def _nothing_to_learn(document: Tokens) -> dict[str, Any]:
    """Return a pack whose loss is zero, with a gradient of zeros for every learned number."""
    return collate([Tokens(document.ids, np.zeros(len(document), dtype=bool))])


def collate(documents: list[Tokens]) -> dict[str, Any]:
    """Lay documents side by side.

    Returns input_ids and position_ids of shape (1, tokens), `keep` (positions whose logits are
    needed), `labels` (the tokens they predict, same length) and the attention layout. The longest
    come first, which lets attention handle documents of similar length together.
    """
    documents = sorted(documents, key=len, reverse=True)
    lengths = [len(document) for document in documents]
    ids = np.concatenate([document.ids for document in documents])
    learned = np.concatenate([document.learned for document in documents])
    positions = np.concatenate([np.arange(length) for length in lengths])
    learned &= positions > 0  # a document's first token is predicted by no token of its own
    targets = np.flatnonzero(learned)
    return {
        "input_ids": torch.from_numpy(ids.astype(np.int64))[None],
        "position_ids": torch.from_numpy(positions.astype(np.int64))[None],
        "keep": torch.from_numpy(targets - 1),
        "labels": torch.from_numpy(ids[targets].astype(np.int64)),
        "layout": Layout.of(lengths),
    }
