"""Conversations as the text a base reads, and which of its characters are learned.

The assistant's turns are learned, each up to and with its end mark. Where they lie is found by
rendering the conversation's beginnings and comparing, which needs no marks in the chat template and
is checked for each example; where the template only puts words around the turns (`frames`), the
example's own text is compared with those. In plain text everything is learned.
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
OTHER_BASE = "Use a base with another template, or data in the text shape."


@dataclass(frozen=True, slots=True)
class Rendered:
    """A document's text and the spans of characters that are learned."""

    text: str
    spans: tuple[Span, ...]


class Unrenderable(Exception):
    """A row that the base's template cannot show: `what` of the row, `sentence` on its own."""

    def __init__(self, what: str, sentence: str, cure: str) -> None:
        super().__init__(what)
        self.what, self.sentence, self.cure = what, sentence, cure

    def as_error(self) -> DataError:
        return DataError(self.sentence, cure=self.cure)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The first turns of a conversation, with or without the prompt that asks for the next."""

    turns: Sequence[dict[str, str]]
    asks: bool


def render(documents: Sequence[Document], tokenizer: Any) -> list[Rendered | Unrenderable]:
    """Render documents, in order; what the template cannot show stands where its text would."""
    if not tokenizer.chat_template:
        return [_or_refusal(partial(_without_template, d, tokenizer)) for d in documents]
    shown = iter(_render_chats([d for d in documents if has_answer(d)], tokenizer))
    return [next(shown) if has_answer(d) else _without_template(d, tokenizer) for d in documents]


def has_answer(document: Document) -> bool:
    """Tell whether a conversation has any word to learn."""
    return any(t["role"] == "assistant" and t["content"].strip() for t in document.turns)


def is_blank(document: Document) -> bool:
    """Tell whether a document has no text to learn at all."""
    return not (has_answer(document) if document.turns else document.text.strip())


def special_tokens(tokenizer: Any) -> "re.Pattern[str]":
    """Return what finds the spelling of a base's special tokens; it reads them as no text."""
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return re.compile("|".join(map(re.escape, special)) or "(?!)")


def holds(document: Document, pattern: "re.Pattern[str]") -> bool:
    """Tell whether a document's own words, without what a template adds, hold a pattern."""
    if not document.turns:
        return pattern.search(document.text) is not None
    return any(pattern.search(turn["content"]) for turn in document.turns)


def _without_template(document: Document, tokenizer: Any) -> Rendered:
    end = tokenizer.eos_token or ""
    if not document.turns:
        text = document.text + end
        return Rendered(text, ((0, len(text)),))
    if not has_answer(document):
        return Rendered(tokenizer.bos_token or " ", ())  # nothing to learn: dropped and counted
    if len(document.turns) != 2 or [t["role"] for t in document.turns] != ["user", "assistant"]:
        raise Unrenderable(
            "it is a conversation, and this base has no chat template",
            f"Row {document.row} is a conversation, and this base has no chat template.",
            "Give it one: Load, Advanced, Chat template; dialogue fits any base. Or use data with "
            "prompt and completion.",
        )
    prompt = plain_prompt(document.turns[0]["content"])
    text = prompt + document.turns[1]["content"] + end
    return Rendered(text, ((len(prompt), len(text)),))


def _render_chats(documents: Sequence[Document], tokenizer: Any) -> list[Rendered | Unrenderable]:
    """Render conversations together, each once where its frame is known to show the answers."""
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
    """Learn the frame of a template, which may be exchanged, for an order of roles."""

    def render_turns(turns: Sequence[dict[str, str]], asks: bool) -> str:
        return _texts([_Beginning(turns, asks)], tokenizer)[0]

    try:
        return template_cache.learn(roles, render_turns)
    except Unrenderable:
        return None


def _render_beginnings(
    documents: Sequence[Document], tokenizer: Any
) -> list[Rendered | Unrenderable]:
    """Render conversations and both ends of each answer: one call of the template for all."""
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
    """Return what to render of a conversation: all of it, and both ends of each answer."""
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

    A turn is what the whole text has beyond the prompt that asks for it. A template for which that
    does not hold cannot be masked right, so the row is refused rather than learned wrong.
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
                "this base's chat template does not show where the answer begins, "
                "so the answer alone cannot be learned"
            )
            raise Unrenderable(what, f"Row {document.row}: {what}.", OTHER_BASE)
        spans.append((len(before), len(upto)))
    return Rendered(full, tuple(spans))


def _texts(wanted: Sequence[_Beginning], tokenizer: Any) -> list[str]:
    """Apply the chat template; the two kinds of beginning each in one call."""
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
    """Return what stands before an answer that opens the conversation.

    Templates are not asked for a prompt after no turn at all; that after a question ends in it.
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
            "Some templates want user and assistant in turn, without a system message.",
        ) from error
    return shown


def _endless() -> ModelError:
    return ModelError(
        f"This base's chat template was not done with the examples after "
        f"{read_limits.TEMPLATE_SECONDS} seconds, and was ended.",
        cure="It may have no end: use a base with another template.",
    )


def _require_readable(shown: list[str]) -> None:
    """Raise Unrenderable where the template makes more of a conversation than can be read."""
    longest = max(map(len, shown), default=0)
    if longest > read_limits.RENDERED_CHARACTERS:
        raise Unrenderable(
            f"this base's chat template makes {longest:,} characters of it",
            f"This base's chat template makes {longest:,} characters of an example.",
            f"At most {read_limits.RENDERED_CHARACTERS:,} are read: "
            "use a base with another template.",
        )


def _or_refusal(show: Callable[[], Rendered]) -> Rendered | Unrenderable:
    try:
        return show()
    except Unrenderable as refusal:
        return refusal
