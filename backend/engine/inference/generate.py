"""One answer with Transformers' own `generate`, for models without a standard cache.

Knows nothing of adapters or conversations."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, TextStreamer
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from backend.engine.core import tolerances
from backend.engine.inference.prompts import end_tokens
from backend.engine.inference.sampling import NEXT_TOKEN, Sampler
from backend.engine.models.loading import Base


def answer_plainly(
    model: torch.nn.Module,
    base: Base,
    ids: torch.Tensor,
    *,
    room: int,
    sampler: Sampler,
    on_text: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> list[int]:
    """Continue one prompt, ids: (1, length), int64, by at most `room` tokens; return new ids."""
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_config(base, room),
            logits_processor=LogitsProcessorList([_Sampling(sampler)]),
            stopping_criteria=StoppingCriteriaList([_StopWhen(should_stop)]),
            streamer=_Streamer(base.tokenizer, on_text),
            use_cache=True,
        )
    tokens: list[int] = output[0, ids.shape[1] :].tolist()
    return tokens


class _Sampling(LogitsProcessor):
    """Applies one row's sampler inside `generate`, which then takes the largest score."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        tolerances.require_finite(scores.amax(dim=-1).tolist(), NEXT_TOKEN)
        return self._sampler.apply(scores, self._sampler.draw(scores.shape[-1]))


class _Streamer(TextStreamer):
    """Streams decoded text as soon as a word is complete."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)


class _StopWhen(StoppingCriteria):
    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self._should_stop(), device=input_ids.device)


def _config(base: Base, max_new_tokens: int) -> GenerationConfig:
    """Return a greedy search; `_Sampling` adds the sampling. The end tokens are the base's."""
    end, pad = end_tokens(base), base.tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end or None,
        pad_token_id=pad if pad is not None or not end else end[0],
    )
