"""Batched decoding through the model's own modules: rows with adapters of their own, padded.

For models that are not computed from their weights (`direct_decoding`), in full precision, and for
one row of any model with a standard cache. Knows nothing of conversations.
"""

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear
from transformers import DynamicCache

from backend.engine.inference.prompts import end_tokens
from backend.engine.inference.rows import Row, take_tokens
from backend.engine.models import tokenizer_traits
from backend.engine.models.loading import Base

BASE_ROW = "__base__"
"""Stands for the base in a row without an adapter."""


@dataclass
class _Part:
    """The adapters of one layer, concatenated along the rank, and each row's scalings for them."""

    down: torch.Tensor
    up: torch.Tensor
    scales: torch.Tensor
    """(rows, 1, sum of ranks): the scaling of the row's own adapter, 0 elsewhere."""

    scaling: dict[str | None, float]

    @classmethod
    def of(cls, layer: LoraLayer, ids: list[str], own: list[str | None]) -> "_Part":
        """Concatenate the adapters of one layer, with their current scalings."""
        downs = [layer.lora_A[id].weight for id in ids]
        up = torch.cat([layer.lora_B[id].weight for id in ids], dim=1)
        owners = [id for id, down in zip(ids, downs, strict=True) for _ in range(len(down))]
        scales = [[layer.scaling[id] if id == mine else 0.0 for id in owners] for mine in own]
        table = torch.tensor(scales, device=up.device, dtype=up.dtype)[:, None]
        return cls(torch.cat(downs), up, table, {id: layer.scaling[id] for id in ids})


class DoesNotFit(Exception):
    """A layer does not get its inputs row by row, so rows cannot have adapters of their own."""


class Routing:
    """Gives each row of a batch its own adapter, in every adapted layer.

    PEFT's `adapter_names` does the same one adapter at a time: twenty small operations per layer
    for three adapters, which on a small model costs most of the time that the batch saves. Here the
    adapters of a layer are concatenated along the rank, and a row keeps its own part: x A, times
    the row's scaling or 0, times B. The model's own adapters are inactive meanwhile. The hooks are
    always removed (PEFT 0.21.2 leaves its own hooks where a call raises, issue 3475).
    """

    def __init__(self, peft: PeftModel, rows: list[Row]) -> None:
        own = [row.adapter for row in rows]
        ids = list(dict.fromkeys(id for id in own if id is not None and id != BASE_ROW))
        self._only: Row | None = None
        self._shape = (len(rows), 0)
        self._parts: dict[Any, _Part] = {}
        for layer in (each for each in peft.modules() if isinstance(each, LoraLayer)):
            here = [id for id in ids if id in layer.lora_A]
            if here:
                self._parts[layer] = _Part.of(layer, here, own)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Apply each row's adapter for a while; the active set must be empty."""
        handles = [layer.register_forward_hook(self._add) for layer in self._parts]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def only(self, row: Row) -> Iterator[None]:
        """Apply only one row's adapter, for a row computed alone.

        That gives the same bits whatever other rows are in the batch.
        """
        self._only = row
        try:
            yield
        finally:
            self._only = None

    def expect(self, ids: torch.Tensor) -> None:
        """Say which batch comes next: ids, (rows, tokens)."""
        self._shape = (ids.shape[0], ids.shape[1])

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only these rows: (kept rows,) int64."""
        for part in self._parts.values():
            part.scales = part.scales[rows]

    def _add(self, layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Add each row's change to a layer's output; raises DoesNotFit where rows are not kept."""
        part = self._parts[layer]
        x = inputs[0].to(part.down.dtype)
        if self._only is None:
            rows, tokens = self._shape
            if x.ndim < 3 or x.shape[0] != rows or tokens not in x.shape[1:-1]:
                raise DoesNotFit(str(tuple(x.shape)))
            scales = part.scales
            if x.ndim > 3:
                scales = scales.reshape(rows, *(1,) * (x.ndim - 2), -1)
            added = linear(linear(x, part.down) * scales, part.up)
        elif (id := self._only.adapter) in part.scaling:
            down, up = layer.lora_A[id].weight, layer.lora_B[id].weight
            added = linear(linear(x, down) * part.scaling[id], up)
        else:
            return output
        return (output + added).to(output.dtype)


def can_batch(model: torch.nn.Module) -> bool:
    """Tell whether a model takes what a batch needs: a standard cache and position ids.

    Whether it is right with them is found by trying (`ways`).
    """
    supports: Any = getattr(type(model), "_supports_default_dynamic_cache", None)
    wanted = {"attention_mask", "position_ids", "past_key_values", "logits_to_keep"}
    known = inspect.signature(model.forward).parameters
    return bool(supports and supports()) and wanted <= known.keys()


def fits_batch(peft: PeftModel, adapter_id: str) -> bool:
    """Tell whether single rows can have this adapter: plain LoRA on linear layers only.

    Other adapters are computed one after the other: PEFT's own `adapter_names` refuses DoRA, and
    for other methods it silently uses the active adapter for each row (0.21.2).
    """
    config: Any = peft.peft_config[adapter_id]
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA" or config.bias != "none" or config.use_dora:
        return False
    extras = ("modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias")
    if any(getattr(config, name, None) for name in extras):
        return False
    layers = [layer for layer in peft.modules() if isinstance(layer, LoraLayer)]
    return not any(
        adapter_id in layer.lora_embedding_A
        or adapter_id in layer.lora_variant
        or (adapter_id in layer.lora_A and layer.lora_A[adapter_id].weight.ndim != 2)
        for layer in layers
    )


def answer_rows(
    base: Base, rows: list[Row], routing: Routing | None, should_stop: Callable[[], bool]
) -> None:
    """Compute the answers of all rows, token by token; a stop keeps the tokens so far.

    Raises DoesNotFit before any token where the base does not allow an adapter for each row.
    """
    started, going, ends = time.monotonic(), list(rows), end_tokens(base)
    with torch.inference_mode(), routing.on() if routing else nullcontext():
        step = first_step(base, [row.prompt for row in rows])
        while going and not should_stop():
            for row in going:
                row.shared = row.shared or len(going) > 1
            if routing:
                routing.expect(step.ids)
            scores = forward(base, step)
            ended = take_tokens(going, scores, ends, lambda row: _alone(base, row, routing))
            step.advance([row.tokens[-1] for row in going])
            for index in ended:
                going[index].seconds = time.monotonic() - started
            if ended:
                keep = [index for index in range(len(going)) if index not in ended]
                going[:] = [going[index] for index in keep]
                if going:
                    step.keep(keep, routing)
    for row in going:
        row.stop(time.monotonic() - started)


def _alone(base: Base, row: Row, routing: Routing | None) -> torch.Tensor:
    """Return one row's next scores, (vocabulary,), from its prompt on, token by token, alone."""
    with routing.only(row) if routing else nullcontext():
        step = first_step(base, [row.prompt])
        scores = forward(base, step)
        for token in row.tokens:
            step.advance([token])
            scores = forward(base, step)
    return scores[0]


@dataclass
class Step:
    """The model's next inputs, for all unfinished rows."""

    ids: torch.Tensor
    mask: torch.Tensor | None
    """None where no row is padded; a mask would be searched at each token for nothing."""

    positions: torch.Tensor
    cache: DynamicCache

    def advance(self, tokens: list[int]) -> None:
        """Add each row's new token."""
        self.ids = torch.tensor(tokens, device=self.ids.device)[:, None]
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1

    def keep(self, rows: list[int], routing: Routing | None) -> None:
        """Keep only these rows, so that a finished answer costs no more time."""
        index = torch.tensor(rows, device=self.ids.device)
        self.ids = self.ids[index]
        self.mask = None if self.mask is None else self.mask[index]
        self.positions = self.positions[index]
        self.cache.batch_select_indices(index)
        if routing:
            routing.keep(index)


def first_step(base: Base, prompts: list[list[int]]) -> Step:
    """Batch prompts (token ids), padded on the left, each with positions from 0."""
    longest = max(map(len, prompts))
    pad = tokenizer_traits.padding(base.tokenizer)
    gaps = [longest - len(prompt) for prompt in prompts]
    ids = [[pad] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    tokens, seen = (torch.tensor(each, device=base.device) for each in (ids, mask))
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    padded = seen if any(gaps) else None
    return Step(tokens, padded, positions, DynamicCache(config=base.model.config))


def forward(base: Base, step: Step) -> torch.Tensor:
    """Return the scores of each row's next token, (rows, vocabulary), float32; fills the cache."""
    output = base.model(
        input_ids=step.ids,
        attention_mask=step.mask,
        position_ids=step.positions,
        past_key_values=step.cache,
        use_cache=True,
        logits_to_keep=1,
    )
    scores: torch.Tensor = output.logits[:, -1].float()
    return scores
