"""Packs: several documents in one row of tokens, isolated from each other by their positions.

A run's packs are a pure function of lengths, tokens per batch, epochs and seed, so a resumed run
finds its place by counting. Nothing is padded here; see `few_lengths` for bf16 on a processor.
Knows nothing of models.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from backend.engine.data.token_arrays import Tokens, lengths_of
from backend.engine.training.packed_attention import Layout
from backend.requests import Train


def plan(lengths: list[int], *, budget: int, epochs: float, seed: int) -> list[list[int]]:
    """Return the packs of a whole run: document numbers, at most `budget` tokens per pack."""
    return segments(lengths, budget=budget, epochs=[epochs], seed=seed)[0]


def segments(
    lengths: list[int], *, budget: int, epochs: list[float], seed: int
) -> list[list[list[int]]]:
    """Return the packs of a run and of each of its extensions, drawn one after the other."""
    generator = random.Random(seed)
    return [_passes(lengths, budget, each, generator) for each in epochs]


def _passes(
    lengths: list[int], budget: int, epochs: float, generator: random.Random
) -> list[list[int]]:
    """Every epoch sees each document once, in a new order; a fractional epoch sees its share."""
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


def training_packs(documents: Sequence[Tokens], request: Train) -> "Packs":
    """Return the packs of a whole run, in training order."""
    packs = plan(
        lengths_of(documents),
        budget=request.tokens_per_step,
        epochs=request.epochs,
        seed=request.seed,
    )
    return Packs(documents, packs, shared_by=request.processes)


def enough(packs: "Packs", request: Train, steps: int) -> "Packs":
    """Return a run's packs, continued by further epochs where it makes more steps than planned."""
    epochs, wanted = request.epochs, steps * request.accumulation
    while len(packs) < wanted - request.accumulation + 1:
        epochs = math.ceil(epochs * max(wanted / len(packs), 1 + 1 / epochs))
        packs = training_packs(packs.documents, request.model_copy(update={"epochs": epochs}))
    return packs


def evaluation_packs(documents: Sequence[Tokens], budget: int) -> "Packs":
    """Return packs that hold each held-out document once; `budget` in tokens."""
    lengths = lengths_of(documents)
    return Packs(documents, fill(lengths, list(range(len(documents))), budget))


@dataclass
class Packs(torch.utils.data.Dataset[dict[str, Any]]):
    """The packs of a plan as a data set; item i is pack i, ready for the model.

    Several processes take packs in turn, so the number of items is a multiple of theirs. Items
    after the last pack have no token with loss.
    """

    documents: Sequence[Tokens]
    packs: list[list[int]]
    shared_by: int = 1
    lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = lengths_of(self.documents)

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
        return sum(self.lengths[number] for number in self.packs[index])


def _nothing_to_learn(document: Tokens) -> dict[str, Any]:
    """Return a pack whose loss is zero, with zero gradients for every trainable parameter."""
    return collate([Tokens(document.ids, np.zeros(len(document), dtype=bool))])


def collate(documents: list[Tokens]) -> dict[str, Any]:
    """Put documents side by side, the longest first, so that similar lengths attend in one batch.

    Returns input_ids, position_ids: (1, tokens), int64; keep: (kept,), int64, the positions whose
    logits are needed; labels: (kept,), int64, the tokens they predict; and the attention layout.
    Positions restart at 0 for each document, as in Transformers' padding-free training.
    """
    documents = sorted(documents, key=len, reverse=True)
    lengths = [len(document) for document in documents]
    ids = np.concatenate([document.ids for document in documents])
    learned = np.concatenate([document.learned for document in documents])
    positions = np.concatenate([np.arange(length) for length in lengths])
    learned &= positions > 0  # nothing predicts a document's first token
    targets = np.flatnonzero(learned)
    return {
        "input_ids": torch.from_numpy(ids.astype(np.int64))[None],
        "position_ids": torch.from_numpy(positions.astype(np.int64))[None],
        "keep": torch.from_numpy(targets - 1),
        "labels": torch.from_numpy(ids[targets].astype(np.int64)),
        "layout": Layout.of(lengths),
    }
