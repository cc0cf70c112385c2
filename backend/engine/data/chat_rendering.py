"""Documents as texts, with the characters that have a loss.

In a conversation these are the assistant's answers, each with its end mark; a document may become
several texts, where the base's chat template shows an answer only at the end as the model has to
write it. In plain text all characters have a loss. Knows nothing of token ids.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from backend.engine.data.dataset import Document, Learning
from backend.engine.data.turns import UNLEARNED
from backend.engine.inference.prompts import plain_prompt
from backend.engine.templates import answer_search, answers, template_frames, tool_forms
from backend.engine.templates.answers import Rendered
from backend.engine.templates.rendering import (
    ChatTemplate,
    Conversation,
    Turn,
    Unrenderable,
)

__all__ = ["Rendered", "Unrenderable", "holds", "is_blank", "render", "special_tokens"]
Shown = list[Rendered] | Unrenderable
NO_TOOLS = "this base's chat template does not show tools or their calls"


def render(documents: Sequence[Document], tokenizer: Any, learning: Learning) -> list[Shown]:
    """Render documents in order; one that cannot be rendered gives an `Unrenderable`."""
    if not tokenizer.chat_template:
        return [_without_template(document, tokenizer) for document in documents]
    template = ChatTemplate(tokenizer, learning.date)
    chats = [_chat(document, template, learning) for document in documents]
    shown = iter(_render_chats([chat for chat in chats if chat], template, learning))
    return [
        next(shown) if chat else _without_template(document, tokenizer)
        for document, chat in zip(documents, chats, strict=True)
    ]


def has_answer(document: Document) -> bool:
    """Tell whether a conversation has an assistant's turn with text or a call of a tool."""
    return any(_says_something(turn) for turn in document.turns)


def is_blank(document: Document) -> bool:
    """Tell whether a document has no text with loss at all."""
    if document.turns:
        return not any(_says_something(turn) and UNLEARNED not in turn for turn in document.turns)
    return not document.text.strip()


def special_tokens(tokenizer: Any) -> "re.Pattern[str]":
    """Return a pattern that finds the base's special tokens, which it does not read as text."""
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return re.compile("|".join(map(re.escape, special)) or "(?!)")


def holds(document: Document, pattern: "re.Pattern[str]") -> bool:
    """Tell whether a document's own text, without the template, contains the pattern."""
    if not document.turns:
        return pattern.search(document.text) is not None
    return any(pattern.search(turn["content"]) for turn in document.turns)


def _says_something(turn: Turn) -> bool:
    words = turn["content"].strip() or turn.get("tool_calls")
    return turn["role"] == "assistant" and bool(words)


def _without_template(document: Document, tokenizer: Any) -> Shown:
    end = tokenizer.eos_token or ""
    if not document.turns:
        text = document.text + end
        return [Rendered(text, ((0, len(text)),))]
    if not has_answer(document):
        return [Rendered(tokenizer.bos_token or " ", ())]  # no loss: dropped and counted
    if [turn["role"] for turn in document.turns] != ["user", "assistant"]:
        return Unrenderable(
            "it is a conversation, and this base has no chat template",
            f"Row {document.row} is a conversation, and this base has no chat template.",
            "Choose one in Load, Advanced, Chat template (dialogue fits any base), or use data "
            "with prompt and completion.",
        )
    asked, answer = (turn["content"] for turn in document.turns)
    prompt = plain_prompt(asked)
    text = prompt + answer + end
    spans = () if is_blank(document) else ((len(prompt), len(text)),)
    return [Rendered(text, spans, (0, len(asked)))]


# -- conversations -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Chat:
    """A document as a template takes it, and the turns of it that are learned.

    `plain`: all turns have only a role and text, so that a frame may fit.
    """

    conversation: Conversation
    learned: tuple[int, ...]
    roles: tuple[str, ...]
    plain: bool


def _render_chats(
    chats: Sequence[_Chat | Unrenderable], template: ChatTemplate, learning: Learning
) -> list[Shown]:
    """Render conversations together where frames give the answers' places, else one by one."""
    framed = [
        (chat, frame)
        for chat in chats
        if isinstance(chat, _Chat) and (frame := _frame_of(chat, template, learning))
    ]
    shown = _in_frames(framed, template)
    return [
        chat if isinstance(chat, Unrenderable)
        else shown.get(id(chat)) or _one_by_one(chat, template, learning)
        for chat in chats
    ]  # fmt: skip


def _chat(
    document: Document, template: ChatTemplate, learning: Learning
) -> _Chat | Unrenderable | None:
    """Bring a document into the form that the template takes; None where it has no answer."""
    said = [n for n, turn in enumerate(document.turns) if _says_something(turn)]
    if not said:
        return None
    turns: list[Turn] = document.turns
    learned = [n for n in said if UNLEARNED not in turns[n]]
    plain = not document.tools and all(len(turn) == 2 for turn in turns)
    conversation = Conversation(turns, document.tools)
    if not plain:
        try:
            conversation = _in_its_form(document, template)
        except Unrenderable as refusal:
            return refusal
        before = len(conversation.turns) - len(turns)  # a system prompt that tells the tools
        learned = [before + number for number in learned]
    roles = tuple([turn["role"] for turn in turns])
    return _Chat(conversation, tuple(learned[-1:] if learning.last_only else learned), roles, plain)


def _in_its_form(document: Document, template: ChatTemplate) -> Conversation:
    """Return a conversation with its tools as the template takes them; raises Unrenderable."""
    turns = [{k: v for k, v in turn.items() if k != UNLEARNED} for turn in document.turns]
    conversation = Conversation(turns, document.tools)
    calls = any("tool_calls" in turn for turn in turns)
    if not calls and not document.tools:
        return conversation
    form = tool_forms.form_of(template)
    if form is None and (calls or not tool_forms.shows_tools(template)):
        sentence = f"Row {document.row}: {NO_TOOLS}."
        raise Unrenderable(NO_TOOLS, sentence, answer_search.OTHER_BASE)
    return form.applied(conversation) if form else conversation


def _frame_of(
    chat: _Chat, template: ChatTemplate, learning: Learning
) -> template_frames.Frame | None:
    if not chat.plain:
        return None
    if not learning.thoughts and any("</think" in t["content"] for t in chat.conversation.turns):
        return None  # the frame knows nothing of the thought within an answer
    return template_frames.frame_of(template, chat.roles, chat.learned)


def _in_frames(
    framed: Sequence[tuple[_Chat, template_frames.Frame]], template: ChatTemplate
) -> dict[int, list[Rendered]]:
    """Render the conversations that have a frame, in one call; return those that fit, by id."""
    wanted = [frame.beginnings(chat.conversation) for chat, frame in framed]
    try:
        texts = iter(template.texts([each for group in wanted for each in group], asks=False))
    except Unrenderable:
        return {}
    found = {}
    for (chat, frame), group in zip(framed, wanted, strict=True):
        contents = [turn["content"] for turn in chat.conversation.turns]
        if shown := frame.filled(contents, list(islice(texts, len(group)))):
            found[id(chat)] = shown
    return found


def _one_by_one(chat: _Chat, template: ChatTemplate, learning: Learning) -> Shown:
    try:
        return answers.place(template, chat.conversation, chat.learned, thoughts=learning.thoughts)
    except Unrenderable as refusal:
        return refusal
