"""The form in which a chat template takes the calls of tools, found by trying.

Templates differ: arguments are an object or its JSON text, a call without text has no content or
an empty one, and some want identifiers of nine letters. The first form is taken in which the
template shows a call with its arguments and the tool's answer. Knows nothing of data files.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from backend.engine.templates.rendering import ChatTemplate, Conversation, Turn, Unrenderable
from backend.engine.templates.tool_families import FAMILIES, Family
from backend.errors import ModelError

_NAME, _KEY, _VALUE, _FOUND, _TOOL_TEXT = "qz5zq", "qz6zq", "qz7zq", "qz8zq", "qz9zq"
TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": _TOOL_TEXT,
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": _TOOL_TEXT}},
            "required": [_KEY],
        },
    },
}
_CALL = {
    "type": "function",
    "id": "call_1",
    "function": {"name": _NAME, "arguments": {_KEY: _VALUE}},
}
CALLING = Conversation(
    [
        {"role": "user", "content": "qz0zq"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    ],
    [TOOL],
)
CALLING_TWICE = Conversation(
    [CALLING.turns[0], {**CALLING.turns[1], "tool_calls": [_CALL, {**_CALL, "id": "call_2"}]}],
    [TOOL],
)
_ANSWERED = Conversation(
    [
        *CALLING.turns,
        {"role": "tool", "name": _NAME, "tool_call_id": "call_1", "content": _FOUND},
        {"role": "assistant", "content": "qz1zq"},
    ],
    [TOOL],
)


@dataclass(frozen=True, slots=True)
class Form:
    """How calls are passed to a template."""

    arguments_as_text: bool = False
    no_content: bool = False
    short_ids: bool = False
    null_content: bool = False

    def applied(self, conversation: Conversation) -> Conversation:
        """Return a conversation in this form; turns without calls stay as they are."""
        if not any("tool_calls" in t or t["role"] == "tool" for t in conversation.turns):
            return conversation
        turns = [self._turn(turn) for turn in conversation.turns]
        turns = _with_short_ids(turns) if self.short_ids else turns
        return Conversation(turns, conversation.tools, self.null_content)

    def _turn(self, turn: Turn) -> Turn:
        if "tool_calls" not in turn:
            return turn
        calls = [self._call(call) for call in turn["tool_calls"]]
        none = self.no_content or self.null_content
        content = turn.get("content") or (None if none else "")
        return {**turn, "content": content, "tool_calls": calls}

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        if self.arguments_as_text and not isinstance(function["arguments"], str):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": function}


FORMS = (
    *(Form(text, none, short) for short, text, none in product((False, True), repeat=3)),
    Form(null_content=True),
    Form(arguments_as_text=True, null_content=True),
)


def form_of(template: ChatTemplate) -> Form | Family | None:
    """Return the form that a template shows calls in, or how its family writes them as text.

    None where neither is known.
    """
    return _form_of(template.tokenizer, str(template.tokenizer.chat_template))


def shows_tools(template: ChatTemplate) -> bool:
    """Tell whether a template shows the tools that the assistant may call."""
    return _shows_tools(template.tokenizer, str(template.tokenizer.chat_template))


@lru_cache(32)
def _form_of(tokenizer: Any, chat_template: str) -> Form | Family | None:
    template = ChatTemplate(tokenizer)
    known: list[Form | Family] = [*FORMS]
    known += [family for family in FAMILIES if family.sign in chat_template]
    return next((form for form in known if _fits(template, form)), None)


@lru_cache(32)
def _shows_tools(tokenizer: Any, chat_template: str) -> bool:
    turns = Conversation([{"role": "user", "content": "qz0zq"}], [TOOL])
    try:
        return _NAME in ChatTemplate(tokenizer).text(turns, asks=True)
    except (Unrenderable, ModelError):
        return False


def _fits(template: ChatTemplate, form: Form | Family) -> bool:
    """Tell whether a template shows a call with its arguments, and the answer to it."""
    try:
        shown = template.text(form.applied(_ANSWERED), asks=False)
    except (Unrenderable, ModelError):
        return False
    called = shown.partition("qz0zq")[2]
    wrong = (f"'{_KEY}'", f'\\"{_KEY}')  # Python's way to show an object, and text within text
    parts = (_NAME, _KEY, _VALUE, _FOUND)
    return all(part in called for part in parts) and not any(each in called for each in wrong)


def _with_short_ids(turns: Sequence[Turn]) -> list[Turn]:
    """Number all calls with identifiers of nine digits, and their answers likewise."""
    known: dict[str, str] = {}

    def short(id: Any) -> str:
        return known.setdefault(str(id), f"{len(known) + 1:09d}")

    found = []
    for turn in turns:
        if "tool_calls" in turn:
            calls = [{**call, "id": short(call.get("id"))} for call in turn["tool_calls"]]
            turn = {**turn, "tool_calls": calls}
        elif turn["role"] == "tool":
            turn = {**turn, "tool_call_id": short(turn.get("tool_call_id"))}
        found.append(turn)
    return found
