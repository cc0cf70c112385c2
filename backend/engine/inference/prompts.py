"""Prompts: a conversation as token ids, the room for an answer, and the tokens that end it."""

from typing import Any

import torch

from backend.engine.models import tokenizer_traits
from backend.engine.models.loading import Base
from backend.engine.templates import answers, end_marks
from backend.engine.templates.rendering import ChatTemplate, Conversation, Unrenderable
from backend.errors import InvalidRequest
from backend.files import read_limits
from backend.requests import Message


def encode_prompt(
    base: Base, messages: list[Message], *, as_in_training: bool = False
) -> torch.Tensor:
    """Return the prompt's token ids, (1, length), int64, on the base's device.

    `as_in_training` leaves out what the template's generation prompt has after the text that stands
    before an answer in training, such as an opened thought. Raises InvalidRequest where the base's
    chat template refuses the conversation.
    """
    tokenizer = base.tokenizer
    special = not tokenizer.chat_template  # a chat template adds the special tokens itself
    text = prompt_text(tokenizer, messages)
    if as_in_training and tokenizer.chat_template:
        template = ChatTemplate(tokenizer, seconds=read_limits.PROMPT_SECONDS)
        text = answers.prompt_in_training(template, _conversation(messages), text)
    text = _without_joined_blank(text, tokenizer, special)
    ids = tokenizer_traits.prompt_ids(text, tokenizer, special=special)
    require_embedded(base, ids)
    return torch.tensor([ids], dtype=torch.int64, device=base.device)


def require_embedded(base: Base, ids: list[int]) -> None:
    """Raise InvalidRequest where a token has no embedding: a GPU would end the process for it."""
    token = tokenizer_traits.first_beyond(ids, base.tokenizer)
    if token is not None:
        raise InvalidRequest(
            f"The text contains {tokenizer_traits.shown(token, base.tokenizer)}, a token of the "
            f"tokenizer that {base.facts.name} has no embedding for.",
            cure="Leave it out.",
        )


def _without_joined_blank(text: str, tokenizer: Any, special: bool) -> str:
    """Leave out a blank at the end of a prompt that belongs to the next word's token.

    In training the word after `ASSISTANT: ` is one token with the blank before it. After a blank
    alone, which training never shows, the model would have to go on with another token.
    """
    if not text.endswith(" "):
        return text
    alone, joined = (
        tokenizer_traits.prompt_ids(each, tokenizer, special=special) for each in (text, text + "a")
    )
    return text if joined[: len(alone)] == alone else text.rstrip(" ")


def prompt_text(tokenizer: Any, messages: list[Message]) -> str:
    """Return a conversation as the base reads it; without a template, each turn on its own lines.

    The last turn then has the same form as a prompt in training. No end token follows an earlier
    answer: a base that continues text treats text after an end token as unrelated.
    """
    if not tokenizer.chat_template:
        return "".join(plain_prompt(message.content) for message in messages)
    template = ChatTemplate(tokenizer, seconds=read_limits.PROMPT_SECONDS)
    try:
        return template.text(_conversation(messages), asks=True)
    except Unrenderable as error:  # the template's raise_exception, or any error in it
        raise InvalidRequest(
            error.sentence.replace("an example", "the conversation"), cure=error.cure
        ) from error


def _conversation(messages: list[Message]) -> Conversation:
    return Conversation([message.model_dump() for message in messages])


def plain_prompt(text: str) -> str:
    """Return a prompt for a base without a chat template: the text and a line break."""
    return text if text[-1:].isspace() else text + "\n"


def end_tokens(base: Base) -> list[int]:
    """Return the ids of the tokens that end an answer: the base's own, and the chat template's."""
    own = getattr(base.model, "generation_config", None)
    end = getattr(own, "eos_token_id", None)
    known = list(end) if isinstance(end, list) else [] if end is None else [end]
    return list(dict.fromkeys([*known, *end_marks.end_tokens(base.tokenizer)]))


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
