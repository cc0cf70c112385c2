"""Several answers in one batch, each row with its own adapter: the same as if it were alone.

Rows are independent but for rounding: a sum over a padded batch may differ from that of a row alone
in its last bits. So where the two likeliest tokens of a row are closer than rounding can move them,
the row is computed once more from its tokens, alone and without a cache, and that decides. It
decides the same way for a row that is alone, so an answer does not depend on its neighbours.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import DynamicCache

from backend.engine.base_model import Base
from backend.engine.generate import Luck, end_tokens
from backend.engine.words import WordStream

BASE_ROW = "__base__"
"""PEFT's name for a row without an adapter."""

# Two scores closer than this may change places by rounding, as a part of max(1, |largest score|):
# well above the largest difference between a row alone and in company (tests/engine/test_batch.py).
MARGINS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass
class Row:
    """One answer on its way. `adapter` is PEFT's name for this row, BASE_ROW, or None.

    None leaves the choice to the model's active adapters; such a row is always alone.
    """

    prompt: list[int]
    adapter: str | None
    luck: Luck
    room: int
    on_text: Callable[[str], None]
    words: WordStream
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


def can_batch(model: torch.nn.Module) -> bool:
    """Tell whether rows of this architecture can lie side by side: a standard cache, positions."""
    supports: Any = getattr(type(model), "_supports_default_dynamic_cache", None)
    wanted = {"attention_mask", "position_ids", "past_key_values", "logits_to_keep"}
    known = inspect.signature(model.forward).parameters
    return bool(supports and supports()) and wanted <= known.keys()


def fits_batch(peft: PeftModel, adapter_id: str) -> bool:
    """Tell whether PEFT can give this adapter to single rows: plain LoRA, without copied modules.

    PEFT 0.21.2 refuses DoRA there, and other methods silently run the active adapter for each row.
    """
    config: Any = peft.peft_config[adapter_id]
    kind = getattr(config.peft_type, "value", config.peft_type)
    plain = kind == "LORA" and config.bias == "none" and not config.use_dora
    copies = config.modules_to_save or getattr(config, "trainable_token_indices", None)
    variants = any(
        adapter_id in getattr(layer, "lora_variant", {})
        for layer in peft.modules()
        if isinstance(layer, LoraLayer)
    )
    return plain and not copies and not variants


def answer_rows(
    base: Base, peft: PeftModel | None, rows: list[Row], should_stop: Callable[[], bool]
) -> None:
    """Fill in the answers of all rows, token by token; a stop leaves what there is by then."""
    started, going = time.monotonic(), list(rows)
    names = [row.adapter or BASE_ROW for row in rows]
    routed = peft is not None and all(row.adapter is not None for row in rows)
    with torch.inference_mode(), _routing(peft if routed else None, names):
        step = _first_step(base, rows)
        while going and not should_stop():
            scores = _forward(base, step)
            ended = _take_tokens(base, going, scores, names, step, end_tokens(base))
            for index in ended:
                going[index].seconds = time.monotonic() - started
            if ended:
                keep = [index for index in range(len(going)) if index not in ended]
                going[:] = [going[index] for index in keep]
                names[:] = [names[index] for index in keep]
                if going:
                    step.keep(keep)
    for row in going:
        row.seconds = time.monotonic() - started
        if text := row.words.end():
            row.on_text(text)


@dataclass
class _Step:
    """What goes into the model next, for all rows that are still going."""

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    cache: DynamicCache

    def advance(self, tokens: list[int]) -> None:
        """Put each row's new token in."""
        self.ids = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1

    def keep(self, rows: list[int]) -> None:
        """Let the other rows go: an answer that is over costs the others nothing."""
        index = torch.tensor(rows, device=self.ids.device)
        self.ids, self.mask = self.ids[index], self.mask[index]
        self.positions = self.positions[index]
        self.cache.batch_select_indices(index)


def _first_step(base: Base, rows: list[Row]) -> _Step:
    """Lay the prompts side by side, padded on the left, each with positions from 0."""
    longest = max(len(row.prompt) for row in rows)
    pad = base.tokenizer.pad_token_id or 0
    gaps = [longest - len(row.prompt) for row in rows]
    ids = [[pad] * gap + row.prompt for gap, row in zip(gaps, rows, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    tokens, seen = (torch.tensor(each, device=base.device) for each in (ids, mask))
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    return _Step(tokens, seen, positions, DynamicCache(config=base.model.config))


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
    names: list[str],
    step: _Step,
    ends: Sequence[int],
) -> list[int]:
    """Choose each row's next token; returns the rows that ended."""
    noises = [row.luck.draw(scores.shape[-1]) for row in going]
    if any(noise is not None for noise in noises):
        pairs = zip(going, scores, noises, strict=True)
        chosen = torch.stack([row.luck.apply(each, noise) for row, each, noise in pairs])
    else:
        chosen = scores
    best = chosen.topk(2, dim=-1)
    largest = scores.amax(dim=-1).abs().clamp(min=1.0)
    rounding = [MARGINS[base.dtype] / (row.luck.temperature or 1.0) for row in going]
    gaps = (best.values[:, 0] - best.values[:, 1]) / largest
    unsure = [not gap > limit for gap, limit in zip(gaps.tolist(), rounding, strict=True)]
    tokens: list[int] = best.indices[:, 0].tolist()
    for index in (index for index, close in enumerate(unsure) if close):
        row = going[index]
        row.close_calls += 1
        alone = row.luck.apply(_scores_alone(base, row, names, index), noises[index])
        tokens[index] = int(alone.argmax())
    step.advance(tokens)
    return [index for index, row in enumerate(going) if row.take(tokens[index], ends)]


def _scores_alone(base: Base, row: Row, names: list[str], index: int) -> torch.Tensor:
    """Compute one row's next scores from its tokens alone: no padding, no cache, no company."""
    ids = torch.tensor([row.prompt + row.tokens], device=base.device)
    everybody = list(names)
    names[:] = [everybody[index]]
    try:
        output = base.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        names[:] = everybody
    scores: torch.Tensor = output.logits[0, -1].float()
    return scores


@contextmanager
def _routing(peft: PeftModel | None, names: list[str]) -> Iterator[None]:
    """Send each row through its own adapter: what PEFT's `adapter_names` does, undone for sure.

    PEFT 0.21.2 registers these hooks anew for each call, and leaves them on the model where the
    call raises (its issue 3475): later answers then use the stale list. `names` may change on the
    way, so rows can leave.
    """
    if peft is None:
        yield
        return

    def route(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "adapter_names": names}

    handles = [
        module.register_forward_pre_hook(route, with_kwargs=True)
        for module in peft.modules()
        if isinstance(module, LoraLayer | AuxiliaryTrainingWrapper)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
