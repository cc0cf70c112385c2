"""Packs: the documents of one batch, and how they are laid out (`TrainingLayout`).

`packed`: side by side in one row of tokens, isolated from each other by their positions. Nothing is
padded; see `few_lengths` for bf16 on a processor. `rows` and `single`: see `rows`. A run's packs
are a pure function of lengths, tokens per batch, epochs, seed and layout, so a resumed run finds
its place by counting. Knows nothing of models.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from backend.engine.data.token_arrays import Tokens, lengths_of
from backend.engine.steps import few_lengths, rows
from backend.requests import Train
from backend.results.training_layout import TrainingLayout

SHORTEST_SHARE = 0.7
"""A batch may waste this share of its longest document on a shorter one before it is split."""


@dataclass(frozen=True)
class Group:
    """Documents computed in one batch. `gather`, (documents * longest,) int64, fetches them padded
    from the pack; `valid` picks the real rows afterwards."""

    documents: int
    longest: int
    gather: torch.Tensor
    valid: torch.Tensor | None


@dataclass(frozen=True)
class Layout:
    """Where the documents of a pack are. Not a tensor, so the model passes it on unchanged."""

    groups: tuple[Group, ...]
    lengths: tuple[int, ...]
    """The documents' lengths in tokens, in their order in the pack."""
    starts: torch.Tensor
    """Where each document starts, and the end of the last one: (documents + 1,) int32."""

    @classmethod
    def of(cls, lengths: list[int]) -> "Layout":
        """Plan the groups for documents side by side, the longest first; `lengths` in tokens."""
        groups: list[Group] = []
        start = begin = 0
        for index in range(len(lengths)):
            last = index + 1 == len(lengths)
            if last or lengths[index + 1] < SHORTEST_SHARE * lengths[begin]:
                members = lengths[begin : index + 1]
                groups.append(_group(members, start))
                start, begin = start + sum(members), index + 1
        starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(tuple(groups), tuple(lengths), starts)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Layout":
        """Return the layout with its indices on a device, as `Tensor.to` does."""
        moved = tuple(
            Group(
                g.documents,
                g.longest,
                g.gather.to(device, non_blocking=non_blocking),
                None if g.valid is None else g.valid.to(device, non_blocking=non_blocking),
            )
            for g in self.groups
        )
        return Layout(moved, self.lengths, self.starts.to(device, non_blocking=non_blocking))


def _group(lengths: list[int], start: int) -> Group:
    longest = lengths[0]
    column = torch.arange(longest)
    sizes = torch.tensor(lengths)[:, None]
    starts = start + torch.cumsum(sizes, 0) - sizes
    gather = (starts + torch.minimum(column, sizes - 1)).reshape(-1)
    inside = (column < sizes).reshape(-1)
    valid = None if bool(inside.all()) else torch.nonzero(inside).reshape(-1)
    return Group(len(lengths), longest, gather, valid)


def plan(
    lengths: list[int], *, budget: int, epochs: float, seed: int, layout: TrainingLayout = "packed"
) -> list[list[int]]:
    """Return the packs of a whole run: document numbers, at most `budget` tokens per pack.

    In rows, padding counts as tokens, too.
    """
    return segments(lengths, budget=budget, epochs=[epochs], seed=seed, layout=layout)[0]


def segments(
    lengths: list[int],
    *,
    budget: int,
    epochs: list[float],
    seed: int,
    layout: TrainingLayout = "packed",
) -> list[list[list[int]]]:
    """Return the packs of a run and of each of its extensions, drawn one after the other."""
    generator = random.Random(seed)
    return [_passes(lengths, budget, each, generator, layout) for each in epochs]


def _passes(
    lengths: list[int],
    budget: int,
    epochs: float,
    generator: random.Random,
    layout: TrainingLayout,
) -> list[list[int]]:
    """Every epoch sees each document once, in a new order; a fractional epoch sees its share."""
    packs: list[list[int]] = []
    remaining = epochs
    while remaining > 0:
        order = list(range(len(lengths)))
        generator.shuffle(order)
        order = order[: max(1, round(len(order) * min(remaining, 1.0)))]
        packs.extend(
            rows.fill(lengths, order, budget, generator)
            if layout == "rows"
            else fill(lengths, order, budget)
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


def training_packs(
    documents: Sequence[Tokens], request: Train, layout: TrainingLayout = "packed"
) -> "Packs":
    """Return the packs of a whole run, in training order."""
    packs = plan(
        lengths_of(documents),
        budget=request.tokens_per_step,
        epochs=request.epochs,
        seed=request.seed,
        layout=layout,
    )
    return Packs(documents, packs, shared_by=request.processes, layout=layout)


def enough(packs: "Packs", request: Train, steps: int) -> "Packs":
    """Return a run's packs, continued by further epochs where it makes more steps than planned."""
    epochs, wanted = request.epochs, steps * request.accumulation
    while len(packs) < wanted - request.accumulation + 1:
        epochs = math.ceil(epochs * max(wanted / len(packs), 1 + 1 / epochs))
        longer = request.model_copy(update={"epochs": epochs})
        packs = training_packs(packs.documents, longer, packs.layout)
    return packs


def evaluation_packs(
    documents: Sequence[Tokens], budget: int, layout: TrainingLayout = "packed"
) -> "Packs":
    """Return packs that hold each held-out document once; `budget` in tokens."""
    lengths, order = lengths_of(documents), list(range(len(documents)))
    way = rows.sorted_by_length if layout == "rows" else fill
    return Packs(documents, way(lengths, order, budget), layout=layout)


@dataclass
class Packs(torch.utils.data.Dataset[dict[str, Any]]):
    """The packs of a plan as a data set; item i is pack i, ready for the model.

    Several processes take packs in turn, so the number of items is a multiple of theirs. Items
    after the last pack have no token with loss.
    """

    documents: Sequence[Tokens]
    packs: list[list[int]]
    shared_by: int = 1
    layout: TrainingLayout = "packed"
    """What the packs were planned for."""
    alone: bool = False
    """Whether documents are computed one by one all the same: a resumed run keeps its packs."""
    lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = lengths_of(self.documents)

    def __len__(self) -> int:
        return -(-len(self.packs) // self.shared_by) * self.shared_by

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self.packs):
            return _nothing_to_learn(self.documents[self.packs[0][0]], self.used_layout)
        return laid_out([self.documents[number] for number in self.packs[index]], self.used_layout)

    @property
    def used_layout(self) -> TrainingLayout:
        """How the documents are laid out for the model."""
        return "single" if self.alone else self.layout

    def tokens(self, index: int) -> int:
        """Return how many tokens pack `index` has, without padding."""
        if index >= len(self.packs):
            return 0
        return sum(self.lengths[number] for number in self.packs[index])

    def tokens_of_step(self, step: int, accumulation: int) -> int:
        """Return how many tokens a step has, without padding; steps are counted from 1."""
        last = min(step * accumulation, len(self))
        return sum(map(self.tokens, range((step - 1) * accumulation, last)))

    def computed(self, index: int) -> int:
        """Return how many positions are computed for pack `index`, padding included."""
        if index >= len(self.packs) or self.used_layout != "rows":
            return self.tokens(index)
        return rows.computed([self.lengths[number] for number in self.packs[index]])

    def shape(self, index: int, *, rounded: bool = False) -> tuple[int, int]:
        """Return the rows that pack `index` is computed in, and the positions of each.

        `rounded` is with the padding of `few_lengths`.
        """
        if index >= len(self.packs) or self.used_layout != "rows":
            length = self.tokens(index)
            return 1, few_lengths.round_up(length) if rounded else length
        lengths = [self.lengths[number] for number in self.packs[index]]
        return len(lengths), few_lengths.row_length(max(lengths)) if rounded else max(lengths)

    @property
    def padding_share(self) -> float:
        """The share of the computed positions that are padding; 0 unless in rows."""
        numbers = range(len(self.packs))
        whole = sum(map(self.computed, numbers))
        return 1 - sum(map(self.tokens, numbers)) / whole if whole else 0.0


def _nothing_to_learn(document: Tokens, layout: TrainingLayout) -> dict[str, Any]:
    """Return a pack whose loss is zero, with zero gradients for every trainable parameter."""
    return laid_out([Tokens(document.ids, np.zeros(len(document), dtype=bool))], layout)


def laid_out(documents: list[Tokens], layout: TrainingLayout) -> dict[str, Any]:
    """Return a pack as tensors for the model; see `collate`, `rows.collate` and `collate_alone`."""
    if layout == "rows":
        return rows.collate(documents)
    return rows.collate_alone(documents) if layout == "single" else collate(documents)


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
