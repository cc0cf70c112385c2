"""Several answers in one batch, each row with its own adapter: the same as if it were alone.

Rows are independent but for rounding: a sum over a padded batch may differ from that of a row alone
in its last bits. So where the two likeliest tokens of a row are closer than rounding can move them,
the row is computed once more from its tokens, alone and without a cache, and that decides. It
decides the same way for a row that is alone, so an answer does not depend on its neighbours.
"""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear
from transformers import DynamicCache

from backend.engine.core import tolerances
from backend.engine.inference.prompts import end_tokens
from backend.engine.inference.sampling import NEXT_TOKEN, Sampler
from backend.engine.inference.text_streaming import TextStream
from backend.engine.models.loading import Base

BASE_ROW = "__base__"
"""Stands for the base in a row without an adapter."""

# Two scores closer than this may change places by rounding, as a part of max(1, |largest score|):
# well above the largest difference between a row alone and in company (tests/engine/test_batch.py).
MARGINS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass
class Row:
    """One answer on its way. `adapter` is the id of this row's adapter, BASE_ROW, or None.

    None leaves the choice to the model's active adapters; such a row is always alone.
    """

    prompt: list[int]
    adapter: str | None
    sampler: Sampler
    room: int
    on_text: Callable[[str], None]
    words: TextStream
    tokens: list[int] = field(default_factory=list)
    close_calls: int = 0
    seconds: float = 0.0

    def take(self, token: int, ends: Sequence[int]) -> bool:
        """Add a token and hand out what is whole; True once the answer is over."""
        self.tokens.append(token)
        ended = token in ends or len(self.tokens) >= self.room
        text = self.words.add(token) + (self.words.end() if ended else "")
        if text:
            self.on_text(text)
        return ended


@dataclass
class _Part:
    """The adapters of one layer side by side, and how much of each a row takes."""

    down: torch.Tensor
    up: torch.Tensor
    scales: torch.Tensor
    """Shape (rows, 1, ranks together): the scaling of the row's own adapter, 0 elsewhere."""

    scaling: dict[str | None, float]

    @classmethod
    def of(cls, layer: LoraLayer, ids: list[str], own: list[str | None]) -> "_Part":
        """Lay the adapters of one layer side by side, with their scalings as they are now."""
        downs = [layer.lora_A[id].weight for id in ids]
        up = torch.cat([layer.lora_B[id].weight for id in ids], dim=1)
        owners = [id for id, down in zip(ids, downs, strict=True) for _ in range(len(down))]
        scales = [[layer.scaling[id] if id == mine else 0.0 for id in owners] for mine in own]
        table = torch.tensor(scales, device=up.device, dtype=up.dtype)[:, None]
        return cls(torch.cat(downs), up, table, {id: layer.scaling[id] for id in ids})


class Routing:
    """Gives each row of a batch its own adapter, in every adapted layer.

    PEFT's `adapter_names` does the same adapter by adapter: twenty small operations a layer for
    three adapters, which costs a small model most of what the batch saves. Here the adapters of a
    layer lie side by side along the rank, and a row keeps its own part: x A, times the row's
    scaling or 0, times B. The model's own adapters are off meanwhile, and the hooks go whatever
    happens (PEFT 0.21.2 leaves its own behind where a call raises, issue 3475).
    """

    def __init__(self, peft: PeftModel, rows: list[Row]) -> None:
        own = [row.adapter for row in rows]
        ids = list(dict.fromkeys(id for id in own if id is not None and id != BASE_ROW))
        self._only: Row | None = None
        self._parts: dict[Any, _Part] = {}
        for layer in (each for each in peft.modules() if isinstance(each, LoraLayer)):
            here = [id for id in ids if id in layer.lora_A]
            if here:
                self._parts[layer] = _Part.of(layer, here, own)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let the rows run through their adapters; the active set must be empty."""
        handles = [layer.register_forward_hook(self._add) for layer in self._parts]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def only(self, row: Row) -> Iterator[None]:
        """Let one row run alone for a moment: with its own adapter's tensors, nobody beside it.

        That gives the same bits whoever else is in the batch.
        """
        self._only = row
        try:
            yield
        finally:
            self._only = None

    def keep(self, rows: torch.Tensor) -> None:
        """Let the other rows go."""
        for part in self._parts.values():
            part.scales = part.scales[rows]

    def _add(self, layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        part = self._parts[layer]
        x = inputs[0].to(part.down.dtype)
        if self._only is None:
            added = linear(linear(x, part.down) * part.scales, part.up)
        elif (id := self._only.adapter) in part.scaling:
            down, up = layer.lora_A[id].weight, layer.lora_B[id].weight
            added = linear(linear(x, down) * part.scaling[id], up)
        else:
            return output
        return (output + added).to(output.dtype)


def can_batch(model: torch.nn.Module) -> bool:
    """Tell whether rows of this architecture can lie side by side: a standard cache, positions."""
    supports: Any = getattr(type(model), "_supports_default_dynamic_cache", None)
    wanted = {"attention_mask", "position_ids", "past_key_values", "logits_to_keep"}
    known = inspect.signature(model.forward).parameters
    return bool(supports and supports()) and wanted <= known.keys()


def fits_batch(peft: PeftModel, adapter_id: str) -> bool:
    """Tell whether single rows can have this adapter: plain LoRA on linear layers, nothing else.

    Where PEFT's own `adapter_names` refuses (DoRA) or silently runs the active adapter for each row
    (other methods, 0.21.2), an adapter goes in turn.
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
    """Fill in the answers of all rows, token by token; a stop leaves what there is by then."""
    started, going = time.monotonic(), list(rows)
    with torch.inference_mode(), routing.on() if routing else nullcontext():
        step = _first_step(base, rows)
        while going and not should_stop():
            scores = _forward(base, step)
            ended = _take_tokens(base, going, scores, routing, step)
            for index in ended:
                going[index].seconds = time.monotonic() - started
            if ended:
                keep = [index for index in range(len(going)) if index not in ended]
                going[:] = [going[index] for index in keep]
                if going:
                    step.keep(keep, routing)
    for row in going:
        row.seconds = time.monotonic() - started
        if text := row.words.end():
            row.on_text(text)


@dataclass
class _Step:
    """What goes into the model next, for all rows that are still going."""

    ids: torch.Tensor
    mask: torch.Tensor | None
    """None where no row is padded; a mask would be searched at each token for nothing."""

    positions: torch.Tensor
    cache: DynamicCache

    def advance(self, tokens: list[int]) -> None:
        """Put each row's new token in."""
        self.ids = torch.tensor(tokens, device=self.ids.device)[:, None]
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1

    def keep(self, rows: list[int], routing: Routing | None) -> None:
        """Let the other rows go: an answer that is over costs the others nothing."""
        index = torch.tensor(rows, device=self.ids.device)
        self.ids = self.ids[index]
        self.mask = None if self.mask is None else self.mask[index]
        self.positions = self.positions[index]
        self.cache.batch_select_indices(index)
        if routing:
            routing.keep(index)


def _first_step(base: Base, rows: list[Row]) -> _Step:
    """Lay the prompts side by side, padded on the left, each with positions from 0."""
    longest = max(len(row.prompt) for row in rows)
    pad = base.tokenizer.pad_token_id or 0
    gaps = [longest - len(row.prompt) for row in rows]
    ids = [[pad] * gap + row.prompt for gap, row in zip(gaps, rows, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    tokens, seen = (torch.tensor(each, device=base.device) for each in (ids, mask))
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    padded = seen if any(gaps) else None
    return _Step(tokens, padded, positions, DynamicCache(config=base.model.config))


def _forward(base: Base, step: _Step) -> torch.Tensor:
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


def _take_tokens(
    base: Base,
    going: list[Row],
    scores: torch.Tensor,
    routing: Routing | None,
    step: _Step,
) -> list[int]:
    """Choose each row's next token; returns the rows that ended."""
    noises = [row.sampler.draw(scores.shape[-1]) for row in going]
    if any(noise is not None for noise in noises):
        pairs = zip(going, scores, noises, strict=True)
        chosen = torch.stack([row.sampler.apply(each, noise) for row, each, noise in pairs])
    else:
        chosen = scores
    best = chosen.topk(2, dim=-1)
    largest = scores.amax(dim=-1).abs().clamp(min=1.0)
    rounding = [MARGINS[base.dtype] / (row.sampler.temperature or 1.0) for row in going]
    gaps = ((best.values[:, 0] - best.values[:, 1]) / largest).tolist()
    if any(map(math.isnan, gaps)):  # so they are wherever the largest score is not finite
        tolerances.require_finite(scores.amax(dim=-1).tolist(), NEXT_TOKEN)
    unsure = [not gap > limit for gap, limit in zip(gaps, rounding, strict=True)]
    tokens: list[int] = best.indices[:, 0].tolist()
    for index in (index for index, close in enumerate(unsure) if close):
        row = going[index]
        row.close_calls += 1
        alone = row.sampler.apply(_scores_alone(base, row, routing), noises[index])
        tokens[index] = int(alone.argmax())
    step.advance(tokens)
    ends = end_tokens(base)
    return [index for index, row in enumerate(going) if row.take(tokens[index], ends)]


def _scores_alone(base: Base, row: Row, routing: Routing | None) -> torch.Tensor:
    """Compute one row's next scores from its tokens alone: no padding, no cache, no company."""
    ids = torch.tensor([row.prompt + row.tokens], device=base.device)
    with routing.only(row) if routing else nullcontext():
        output = base.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    scores: torch.Tensor = output.logits[0, -1].float()
    return scores
