"""Answers and scores of the session's model. Knows nothing of adapters: the caller chose them."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, TextStreamer
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from backend.engine.base_model import Base
from backend.errors import InvalidRequest
from backend.requests import Message

SCORE_CHUNK = 1024


def encode_prompt(base: Base, messages: list[Message]) -> torch.Tensor:
    """Return the prompt's token ids, shape (1, length), ready for an answer."""
    tokenizer = base.tokenizer
    if tokenizer.chat_template:
        turns = [message.model_dump() for message in messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    else:
        text = plain_prompt(messages[-1].content)
        ids = tokenizer(text, return_tensors="pt").input_ids
    return ids.to(base.device)


def plain_prompt(text: str) -> str:
    """Return how a prompt looks to a base without a chat template: the text and a line break."""
    return text if text[-1:].isspace() else text + "\n"


def answer(
    model: torch.nn.Module,
    base: Base,
    messages: list[Message],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    on_text: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[str, int]:
    """Answer a conversation; returns the text and its length in tokens.

    The answer depends on messages, settings and seed alone. Raises InvalidRequest where the
    conversation leaves no room in the model's context.
    """
    ids = encode_prompt(base, messages)
    room = _room(base, ids.shape[1], max_new_tokens)
    streamer = _Streamer(base.tokenizer, on_text or _ignore)
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_config(base, room),
            logits_processor=LogitsProcessorList([Sampler(temperature, [seed])]),
            stopping_criteria=StoppingCriteriaList([_StopWhen(should_stop)]),
            streamer=streamer,
            use_cache=True,
        )
    new = output[0, ids.shape[1] :]
    return base.tokenizer.decode(new, skip_special_tokens=True).strip(), len(new)


def score(model: torch.nn.Module, base: Base, text: str) -> tuple[float, int]:
    """Return the total natural-log probability of a text's tokens after the first, and their count.

    The text is tokenised with the tokenizer's default special tokens and no template.
    """
    ids = base.tokenizer(text, return_tensors="pt").input_ids.to(base.device)
    length = ids.shape[1]
    if length < 2:
        return 0.0, 0
    _room(base, length, 0)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        total = 0.0
        for start in range(0, length - 1, SCORE_CHUNK):
            part = logits[start : start + SCORE_CHUNK].float().log_softmax(-1)
            wanted = ids[0, start + 1 : start + 1 + len(part)]
            total += part.gather(1, wanted[:, None]).double().sum().item()
    return total, length - 1


class Sampler(LogitsProcessor):
    """Temperature sampling by Gumbel noise under greedy search, one random generator per row.

    The likeliest token after adding Gumbel noise is a sample of the softmax (Gumbel-max trick), and
    a row's noise is its own: an answer is the same alone and in company.
    """

    def __init__(self, temperature: float, seeds: list[int]) -> None:
        self._temperature = temperature
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._temperature == 0:
            return scores
        noise = torch.stack(
            [torch.rand(scores.shape[-1], generator=g).clamp_(1e-20) for g in self._generators]
        ).to(scores.device)
        return scores / self._temperature - (-noise.log()).log()


class _Streamer(TextStreamer):
    """Hands out decoded text as soon as a word is whole."""

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
    """Greedy search; sampling is the processor's. The end tokens are the base's own."""
    own = getattr(base.model, "generation_config", None)
    end = getattr(own, "eos_token_id", None) or base.tokenizer.eos_token_id
    pad = base.tokenizer.pad_token_id
    if pad is None:
        pad = end[0] if isinstance(end, list) else end
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad
    )


def _room(base: Base, used: int, wanted: int) -> int:
    """Return how many tokens may follow; raises InvalidRequest where there is no room."""
    limit = base.facts.context_length
    if not limit or used + wanted <= limit:
        return wanted
    if used >= limit:
        raise InvalidRequest(
            f"This text has {used} tokens, and the model reads at most {limit}.",
            cure="Shorten it, or start a new conversation.",
        )
    return limit - used


def _ignore(text: str) -> None:
    """Take text that nobody wants to see piece by piece."""
