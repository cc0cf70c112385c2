"""One answer with Transformers' own `generate`, or with whole forward passes and no cache.

For models without a standard cache. Knows nothing of adapters or conversations.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    with torch.inference_mode(), no_settings_of_its_own(base.model):
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


def answer_whole(
    base: Base,
    prompt: list[int],
    *,
    sampler: Sampler,
    on_token: Callable[[int], bool],
    should_stop: Callable[[], bool],
) -> None:
    """Continue one prompt without a cache: each token takes a pass over the whole text.

    `on_token` is called with each new token and returns whether the answer is over.
    """
    ids = list(prompt)
    with torch.inference_mode():
        while not should_stop():
            scores = whole_scores(base, ids)
            tolerances.require_finite([scores.amax().item()], NEXT_TOKEN)
            noise = sampler.draw(scores.shape[-1])
            ids.append(int(sampler.apply(scores, noise).argmax()))
            if on_token(ids[-1]):
                return


def whole_scores(base: Base, ids: list[int]) -> torch.Tensor:
    """Return the scores of the token after a text, (vocabulary,), float32, without a cache."""
    options = {"use_cache": False, "logits_to_keep": 1}
    known = inspect.signature(base.model.forward).parameters
    inputs = torch.tensor([ids], device=base.device)
    output = base.model(input_ids=inputs, **{k: v for k, v in options.items() if k in known})
    scores: torch.Tensor = output.logits[0, -1].float()
    return scores


def scored_plainly(
    base: Base, ids: torch.Tensor, steps: int
) -> tuple[list[torch.Tensor], list[int]]:
    """Return the scores of each step of `generate`, (1, vocabulary) each, and its tokens."""
    with no_settings_of_its_own(base.model):
        output = base.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_config(base, steps),
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return list(output.logits), output.sequences[0, ids.shape[1] :].tolist()


@contextmanager
def no_settings_of_its_own(model: Any) -> Iterator[None]:
    """Keep a base's own generation settings out of `generate` for a while.

    Transformers 5.23 takes each setting that a call leaves out from the model, such as a forced end
    mark as the last token (BART). Rows of a batch know no such settings, so no answer has them.
    """
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


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
