"""The token that ends an answer: found in what the chat template writes after one.

Knows nothing of data or models; a model's own end tokens are in its generation configuration.
"""

import re
from functools import lru_cache
from typing import Any

from backend.engine.templates import tool_forms
from backend.engine.templates.rendering import ChatTemplate, Conversation, Unrenderable
from backend.errors import ModelError

ANSWER = "qz1zq"
_ASKED = {"role": "user", "content": "qz0zq"}


def added_tokens(tokenizer: Any) -> "re.Pattern[str]":
    """Return a pattern that finds the tokens that a tokenizer never splits."""
    return _pattern(tuple(token.content for token in tokenizer.added_tokens_decoder.values()))


@lru_cache(32)
def _pattern(tokens: tuple[str, ...]) -> "re.Pattern[str]":
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def length_in(tail: str, tokenizer: Any) -> int:
    """Return how much of a text after an answer is the end mark; 0 where it holds none.

    The mark is the first token there. Where the end-of-text token follows at once, as in
    `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`, it is part of the mark; what comes after it belongs to
    the next turn.
    """
    tokens, end = added_tokens(tokenizer), str(tokenizer.eos_token or "")
    place = len(tail) - len(tail.lstrip())
    first = 0
    while found := tokens.match(tail, place):
        place = found.end()
        first = first or place
        if found.group() == end:
            return place
    if first or not end:
        return first
    before, found_end, _ = tail.partition(end)
    return len(before) + len(end) if found_end and not re.search(r"\S\s", before) else 0


def last_in(text: str, tokenizer: Any) -> str:
    """Return the token that a text ends with, blanks aside; empty where it is no token."""
    text = text.rstrip()
    found = [each for each in added_tokens(tokenizer).finditer(text) if each.end() == len(text)]
    return found[-1].group() if found else ""


def end_tokens(tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that end an answer: end of text, and the template's own.

    What training teaches to write last is always among them.
    """
    return list(_end_tokens(tokenizer, str(tokenizer.chat_template or "")))


@lru_cache(32)
def _end_tokens(tokenizer: Any, chat_template: str) -> tuple[int, ...]:
    """Cached by the template's text, too, which may be set later."""
    ends = [tokenizer.eos_token, *(_of_template(tokenizer) if chat_template else [])]
    ids = [tokenizer.convert_tokens_to_ids(each) for each in ends if each]
    return tuple(dict.fromkeys(id for id in ids if isinstance(id, int) and id >= 0))


def _of_template(tokenizer: Any) -> list[str]:
    """Return the tokens that end an answer, and a call of a tool, as the template shows them."""
    template = ChatTemplate(tokenizer)
    asked = Conversation([_ASKED, {"role": "assistant", "content": ANSWER}])
    tail = _text(template, asked).partition(ANSWER)[2]
    answer_end = last_in(tail[: length_in(tail, tokenizer)], tokenizer)
    return [answer_end, _end_of_calls(template)]


def _end_of_calls(template: ChatTemplate) -> str:
    """Return the token after all calls of an answer; empty where the last one is part of a call."""
    form = tool_forms.form_of(template)
    if form is None:
        return ""
    once = _text(template, form.applied(tool_forms.CALLING))
    twice = _text(template, form.applied(tool_forms.CALLING_TWICE))
    last = last_in(once, template.tokenizer)
    return last if last and once.count(last) == twice.count(last) else ""


def _text(template: ChatTemplate, conversation: Conversation) -> str:
    """Render a conversation; empty where the template refuses it, as is said where it is used."""
    try:
        return template.text(conversation, asks=False)
    except (Unrenderable, ModelError):
        return ""
