"""Prompts, sampling and scores of the session's model. Knows nothing of adapters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, TextStreamer
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from backend.engine.core import tolerances
from backend.engine.core.time_limit import within
from backend.engine.models.loading import Base
from backend.errors import InvalidRequest, ModelError, WorkbenchError
from backend.files import read_limits
from backend.requests import Message

SCORE_CHUNK = 1024
NEXT_TOKEN = "The score of the next token"


def encode_prompt(base: Base, messages: list[Message]) -> torch.Tensor:
    """Return the prompt's token ids, shape (1, length), ready for an answer.

    Raises InvalidRequest where the base's chat template refuses the conversation.
    """
    tokenizer = base.tokenizer
    text = prompt_text(tokenizer, messages)
    special = not tokenizer.chat_template  # a template writes the special tokens itself
    ids = tokenizer(text, add_special_tokens=special, return_tensors="pt").input_ids
    return ids.to(base.device)


def prompt_text(tokenizer: Any, messages: list[Message]) -> str:
    """Return a conversation as the base reads it; without a template, each turn on its own lines.

    The last turn is then what training makes of a prompt. There is no end mark after an answer:
    to a base that continues text, what stands before one has nothing to do with what follows.
    """
    if not tokenizer.chat_template:
        return "".join(plain_prompt(message.content) for message in messages)
    turns = [message.model_dump() for message in messages]
    try:
        text = within(
            read_limits.PROMPT_SECONDS,
            lambda: tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            ),
            error=_endless,
        )
        return _readable(str(text))
    except WorkbenchError:
        raise
    except Exception as error:  # a template's own raise_exception, and whatever is wrong in it
        raise InvalidRequest(
            f"This base's chat template refuses the conversation: {error}.",
            cure="Some templates want user and assistant in turn, without a system message.",
        ) from error


def _endless() -> ModelError:
    return ModelError(
        f"This base's chat template was not done with the conversation after "
        f"{read_limits.PROMPT_SECONDS} seconds, and was ended.",
        cure="It may have no end: use a base with another template.",
    )


def _readable(text: str) -> str:
    """Return a prompt; raises InvalidRequest where the template made too much of it."""
    if len(text) > read_limits.RENDERED_CHARACTERS:
        raise InvalidRequest(
            f"This base's chat template makes {len(text):,} characters of the conversation, and at "
            f"most {read_limits.RENDERED_CHARACTERS:,} are read.",
            cure="Use a base with another template.",
        )
    return text


def plain_prompt(text: str) -> str:
    """Return how a prompt looks to a base without a chat template: the text and a line break."""
    return text if text[-1:].isspace() else text + "\n"


class Sampler:
    """One row's chance: with temperature, the likeliest token after adding noise of its own.

    The likeliest token after adding Gumbel noise is a sample of the softmax (Gumbel-max trick), and
    the noise comes from the row's seed alone: an answer is the same alone and in company.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self.temperature = temperature
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, size: int) -> torch.Tensor | None:
        """Return the noise of the next token; None where there is no chance in it."""
        if self.temperature == 0:
            return None
        return -(-torch.rand(size, generator=self._generator).clamp_(1e-20).log()).log()

    def apply(self, scores: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Return the scores of which the largest is taken."""
        if noise is None:
            return scores
        return scores / self.temperature + noise.to(scores.device)


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
    """Continue one prompt by Transformers' own `generate`, for models with a cache of their own."""
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


class TextScore(NamedTuple):
    """A text's total log-probability, that of each token after the first, and its token ids."""

    total: float
    each: list[float]
    tokens: list[int]


def score(model: torch.nn.Module, base: Base, text: str) -> tuple[float, int]:
    """Return the total natural-log probability of a text's tokens after the first, and their count.

    The text is tokenised with the tokenizer's default special tokens and no template.
    """
    found = score_tokens(model, base, text)
    return found.total, len(found.each)


def score_tokens(model: torch.nn.Module, base: Base, text: str) -> TextScore:
    """Like `score`, with every token's share.

    Texts go one by one: padding them into a batch would move a score by its rounding (1e-6 here),
    and others compare scores bit for bit.
    """
    ids = base.tokenizer(text, return_tensors="pt").input_ids.to(base.device)
    length = ids.shape[1]
    if length < 2:
        return TextScore(0.0, [], ids[0].tolist())
    room_for(base, length, 0)
    total, each = 0.0, []
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        for start in range(0, length - 1, SCORE_CHUNK):
            part = logits[start : start + SCORE_CHUNK].float().log_softmax(-1)
            wanted = ids[0, start + 1 : start + 1 + len(part)]
            found = part.gather(1, wanted[:, None]).double()
            total += found.sum().item()
            each.extend(found[:, 0].tolist())
    tolerances.require_finite([total], "The log-probability of a text")
    return TextScore(total, each, ids[0].tolist())


def next_token_chances(model: torch.nn.Module, base: Base, prompt: str) -> torch.Tensor:
    """Return how likely every token is right after a prompt, shape (vocabulary,)."""
    ids = encode_prompt(base, [Message(role="user", content=prompt)])
    room_for(base, ids.shape[1], 0)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
    chances = logits.double().softmax(-1).cpu()
    tolerances.require_finite([chances.sum().item()], NEXT_TOKEN)
    return chances


def end_tokens(base: Base) -> list[int]:
    """Return the tokens that end an answer: the base's own."""
    own = getattr(base.model, "generation_config", None)
    end = getattr(own, "eos_token_id", None) or base.tokenizer.eos_token_id
    return list(end) if isinstance(end, list) else [] if end is None else [end]


def room_for(base: Base, used: int, wanted: int) -> int:
    """Return how many tokens may follow; raises InvalidRequest where there is no room."""
    limit = base.facts.context_length
    if not limit or used + wanted <= limit:
        return wanted
    if used >= limit:
        raise InvalidRequest(
            f"This text has {used} tokens, and the model reads at most {limit}.",
            cure="Shorten it, or start a new conversation." if wanted else "Take a shorter one.",
        )
    return limit - used


class _Sampling(LogitsProcessor):
    """Applies one row's sampler inside `generate`, which then takes the largest score."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        tolerances.require_finite(scores.amax(dim=-1).tolist(), NEXT_TOKEN)
        return self._sampler.apply(scores, self._sampler.draw(scores.shape[-1]))


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
    end, pad = end_tokens(base), base.tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end or None,
        pad_token_id=pad if pad is not None or not end else end[0],
    )
