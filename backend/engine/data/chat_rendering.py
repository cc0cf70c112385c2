"""Conversations rendered with the base's chat template, and the characters that have a loss.

The assistant's turns have a loss, each including its end token. Their positions are found by
rendering the beginnings of the conversation and comparing. This needs no `generation` marks in the
chat template and is checked for each example. Where the template only puts fixed text around the
turns (`template_cache`), one rendering is compared with that text. In plain text all characters
have a loss. Knows nothing of token ids.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any

from backend.engine.core.time_limit import within
from backend.engine.data import template_cache
from backend.engine.data.dataset import Document
from backend.engine.inference.prompts import plain_prompt
from backend.errors import DataError, ModelError
from backend.files import read_limits

Span = tuple[int, int]
OTHER_BASE = "Use a base with another chat template, or data in the text format."


@dataclass(frozen=True, slots=True)
class Rendered:
    """A document's text and the character spans that have a loss."""

    text: str
    spans: tuple[Span, ...]


class Unrenderable(Exception):
    """A row that the base's template cannot render: `what` for a list, `sentence` on its own."""

    def __init__(self, what: str, sentence: str, cure: str) -> None:
        super().__init__(what)
        self.what, self.sentence, self.cure = what, sentence, cure

    def as_error(self) -> DataError:
        return DataError(self.sentence, cure=self.cure)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The first turns of a conversation, with or without the generation prompt."""

    turns: Sequence[dict[str, str]]
    asks: bool


def render(documents: Sequence[Document], tokenizer: Any) -> list[Rendered | Unrenderable]:
    """Render documents in order; a document that cannot be rendered gives an `Unrenderable`."""
    if not tokenizer.chat_template:
        return [_or_refusal(partial(_without_template, d, tokenizer)) for d in documents]
    shown = iter(_render_chats([d for d in documents if has_answer(d)], tokenizer))
    return [next(shown) if has_answer(d) else _without_template(d, tokenizer) for d in documents]


def has_answer(document: Document) -> bool:
    """Tell whether a conversation has an assistant's turn with text."""
    return any(t["role"] == "assistant" and t["content"].strip() for t in document.turns)


def is_blank(document: Document) -> bool:
    """Tell whether a document has no text with loss at all."""
    return not (has_answer(document) if document.turns else document.text.strip())


def special_tokens(tokenizer: Any) -> "re.Pattern[str]":
    """Return a pattern that finds the base's special tokens, which it does not read as text."""
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return re.compile("|".join(map(re.escape, special)) or "(?!)")


def holds(document: Document, pattern: "re.Pattern[str]") -> bool:
    """Tell whether a document's own text, without the template, contains the pattern."""
    if not document.turns:
        return pattern.search(document.text) is not None
    return any(pattern.search(turn["content"]) for turn in document.turns)


def _without_template(document: Document, tokenizer: Any) -> Rendered:
    end = tokenizer.eos_token or ""
    if not document.turns:
        text = document.text + end
        return Rendered(text, ((0, len(text)),))
    if not has_answer(document):
        return Rendered(tokenizer.bos_token or " ", ())  # no loss: dropped and counted
    if len(document.turns) != 2 or [t["role"] for t in document.turns] != ["user", "assistant"]:
        raise Unrenderable(
            "it is a conversation, and this base has no chat template",
            f"Row {document.row} is a conversation, and this base has no chat template.",
            "Choose one in Load, Advanced, Chat template (dialogue fits any base), or use data "
            "with prompt and completion.",
        )
    prompt = plain_prompt(document.turns[0]["content"])
    text = prompt + document.turns[1]["content"] + end
    return Rendered(text, ((len(prompt), len(text)),))


def _render_chats(documents: Sequence[Document], tokenizer: Any) -> list[Rendered | Unrenderable]:
    """Render conversations together; once each where a frame gives the answers' positions."""
    framed = [(d, frame) for d in documents if (frame := _frame_of(d, tokenizer)) is not None]
    try:
        texts = _texts([_Beginning(document.turns, False) for document, _ in framed], tokenizer)
    except Unrenderable:
        return _render_beginnings(documents, tokenizer)
    shown = {
        id(document): Rendered(text, spans)
        for (document, frame), text in zip(framed, texts, strict=True)
        if (spans := frame.spans([turn["content"] for turn in document.turns], text))
    }
    others = [document for document in documents if id(document) not in shown]
    rest = iter(_render_beginnings(others, tokenizer) if others else [])
    return [shown.get(id(document)) or next(rest) for document in documents]


def _frame_of(document: Document, tokenizer: Any) -> template_cache.Frame | None:
    roles = tuple(turn["role"] for turn in document.turns)
    if len(roles) > template_cache.LONGEST or any(len(turn) != 2 for turn in document.turns):
        return None
    return _frame(tokenizer, str(tokenizer.chat_template), roles)


@lru_cache(32)
def _frame(
    tokenizer: Any, chat_template: str, roles: tuple[str, ...]
) -> template_cache.Frame | None:
    """Return a template's frame for an order of roles; cached by the template, too."""

    def render_turns(turns: Sequence[dict[str, str]], asks: bool) -> str:
        return _texts([_Beginning(turns, asks)], tokenizer)[0]

    try:
        return template_cache.learn(roles, render_turns)
    except Unrenderable:
        return None


def _render_beginnings(
    documents: Sequence[Document], tokenizer: Any
) -> list[Rendered | Unrenderable]:
    """Render conversations and both ends of each answer, with one template call for all."""
    wanted = [_beginnings(document) for document in documents]
    try:
        texts = _texts([each for group in wanted for each in group], tokenizer)
    except Unrenderable as refusal:
        if len(documents) == 1:
            return [refusal]
        return [_render_beginnings([document], tokenizer)[0] for document in documents]
    rest = iter(texts)
    owned = [list(islice(rest, len(group))) for group in wanted]
    return [
        _or_refusal(partial(_place_answers, document, own))
        for document, own in zip(documents, owned, strict=True)
    ]


def _beginnings(document: Document) -> list[_Beginning]:
    """Return the beginnings to render: the whole conversation, and both ends of each answer."""
    turns = document.turns
    wanted = [_Beginning(turns, False)]
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            wanted.append(_Beginning(turns[:index], True))
            if index + 1 < len(turns):
                wanted.append(_Beginning(turns[: index + 1], False))
    return wanted


def _place_answers(document: Document, texts: list[str]) -> Rendered:
    """Find the answers in the whole text, the first of `texts`.

    An answer is the part of the whole text after its generation prompt. Where a template does not
    work this way, the loss mask would be wrong, so the row is refused.
    """
    full, *others = texts
    rest = iter(others)
    spans: list[Span] = []
    for index, turn in enumerate(document.turns):
        if turn["role"] != "assistant":
            continue
        before = next(rest)
        upto = (next(rest) if index + 1 < len(document.turns) else full).rstrip()
        if not (full.startswith(before) and full.startswith(upto) and len(before) < len(upto)):
            what = (
                "this base's chat template does not show where the answer starts, "
                "so the loss cannot be limited to the answer"
            )
            raise Unrenderable(what, f"Row {document.row}: {what}.", OTHER_BASE)
        spans.append((len(before), len(upto)))
    return Rendered(full, tuple(spans))


def _texts(wanted: Sequence[_Beginning], tokenizer: Any) -> list[str]:
    """Apply the chat template, in one call for each of the two kinds of beginning."""
    texts = [""] * len(wanted)
    for asks in (False, True):
        places = [n for n, each in enumerate(wanted) if each.asks == asks and each.turns]
        if places:
            some = _template(tokenizer, [list(wanted[n].turns) for n in places], asks)
            for place, text in zip(places, some, strict=True):
                texts[place] = text
    if all(each.turns for each in wanted):
        return texts
    opening = _opening(tokenizer, str(tokenizer.chat_template))
    return [text if each.turns else opening for text, each in zip(texts, wanted, strict=True)]


@lru_cache(32)
def _opening(tokenizer: Any, chat_template: str) -> str:
    """Return the text before an answer that opens the conversation.

    Templates cannot render a generation prompt without any turn, so it is taken from the end of
    the generation prompt after a question.
    """
    begun = str(tokenizer.bos_token or "")
    turns = [{"role": "user", "content": "qz0zq"}]
    asked, unasked = (_template(tokenizer, [turns], asks)[0] for asks in (True, False))
    prompt = asked.removeprefix(unasked) if asked.startswith(unasked) else ""
    answer = [{"role": "assistant", "content": "qz1zq"}]
    first = _template(tokenizer, [answer], False)[0]
    return begun + prompt if first.startswith(begun + prompt) else begun


def _template(tokenizer: Any, conversations: list[Any], asks: bool) -> list[str]:
    try:
        shown: list[str] = within(
            read_limits.TEMPLATE_SECONDS,
            lambda: tokenizer.apply_chat_template(
                conversations, tokenize=False, add_generation_prompt=asks
            ),
            error=_endless,
        )
        _require_readable(shown)
    except (ModelError, Unrenderable):
        raise
    except Exception as error:
        raise Unrenderable(
            f"this base's chat template refuses it: {error}",
            f"This base's chat template refuses an example: {error}.",
            "Some templates need user and assistant in turn, without a system message.",
        ) from error
    return shown


def _endless() -> ModelError:
    return ModelError(
        f"This base's chat template did not finish within {read_limits.TEMPLATE_SECONDS} seconds "
        "and was stopped.",
        cure="It may loop forever: use a base with another chat template.",
    )


def _require_readable(shown: list[str]) -> None:
    """Raise Unrenderable where the rendered conversation is too long to be read."""
    longest = max(map(len, shown), default=0)
    if longest > read_limits.RENDERED_CHARACTERS:
        raise Unrenderable(
            f"this base's chat template turns it into {longest:,} characters",
            f"This base's chat template turns an example into {longest:,} characters.",
            f"At most {read_limits.RENDERED_CHARACTERS:,} are read: "
            "use a base with another chat template.",
        )


def _or_refusal(show: Callable[[], Rendered]) -> Rendered | Unrenderable:
    try:
        return show()
    except Unrenderable as refusal:
        return refusal
