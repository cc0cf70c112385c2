"""Prompts: a conversation as token ids, the room for an answer, and the tokens that end it."""

from typing import Any

import torch

from backend.engine.core.time_limit import within
from backend.engine.models.loading import Base
from backend.errors import InvalidRequest, ModelError, WorkbenchError
from backend.files import read_limits
from backend.requests import Message


def encode_prompt(base: Base, messages: list[Message]) -> torch.Tensor:
    """Return the prompt's token ids, (1, length), int64, on the base's device.

    Raises InvalidRequest where the base's chat template refuses the conversation.
    """
    tokenizer = base.tokenizer
    text = prompt_text(tokenizer, messages)
    special = not tokenizer.chat_template  # a chat template adds the special tokens itself
    ids = tokenizer(text, add_special_tokens=special, return_tensors="pt").input_ids
    return ids.to(base.device)


def prompt_text(tokenizer: Any, messages: list[Message]) -> str:
    """Return a conversation as the base reads it; without a template, each turn on its own lines.

    The last turn then has the same form as a prompt in training. No end token follows an earlier
    answer: a base that continues text treats text after an end token as unrelated.
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
    except Exception as error:  # the template's raise_exception, or any error in it
        raise InvalidRequest(
            f"This base's chat template refuses the conversation: {error}.",
            cure="Some templates need user and assistant in turn, without a system message.",
        ) from error


def plain_prompt(text: str) -> str:
    """Return a prompt for a base without a chat template: the text and a line break."""
    return text if text[-1:].isspace() else text + "\n"


def end_tokens(base: Base) -> list[int]:
    """Return the ids of the tokens that end an answer, from the base's own configuration."""
    own = getattr(base.model, "generation_config", None)
    end = getattr(own, "eos_token_id", None) or base.tokenizer.eos_token_id
    return list(end) if isinstance(end, list) else [] if end is None else [end]


def room_for(base: Base, used: int, wanted: int) -> int:
    """Return how many tokens may follow; raises InvalidRequest where the context is full."""
    limit = base.facts.context_length
    if not limit or used + wanted <= limit:
        return wanted
    if used >= limit:
        raise InvalidRequest(
            f"This text has {used} tokens, and the model reads at most {limit}.",
            cure="Shorten it, or start a new conversation." if wanted else "Use a shorter text.",
        )
    return limit - used


def _endless() -> ModelError:
    return ModelError(
        f"This base's chat template did not finish within {read_limits.PROMPT_SECONDS} seconds "
        "and was stopped.",
        cure="It may loop forever: use a base with another chat template.",
    )


def _readable(text: str) -> str:
    """Return a prompt; raises InvalidRequest where the template made it too long."""
    if len(text) > read_limits.RENDERED_CHARACTERS:
        raise InvalidRequest(
            f"This base's chat template turns the conversation into {len(text):,} characters, and "
            f"at most {read_limits.RENDERED_CHARACTERS:,} are read.",
            cure="Use a base with another chat template.",
        )
    return text
