"""A conversation as token ids, how many may follow, and which of them end an answer."""

from typing import Any

import torch

from backend.engine.core.time_limit import within
from backend.engine.models.loading import Base
from backend.errors import InvalidRequest, ModelError, WorkbenchError
from backend.files import read_limits
from backend.requests import Message


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


def plain_prompt(text: str) -> str:
    """Return how a prompt looks to a base without a chat template: the text and a line break."""
    return text if text[-1:].isspace() else text + "\n"


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
