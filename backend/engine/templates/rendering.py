"""A chat template applied to conversations, under limits of time and length, on a given date.

Everything goes through Transformers' own `apply_chat_template`, so a text is the text that every
other program makes of the conversation. Knows nothing of answers or tokens.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from transformers.utils import chat_template_utils

from backend.engine.core import template_syntax
from backend.engine.core.time_limit import within
from backend.errors import DataError, ModelError
from backend.files import read_limits

Turn = dict[str, Any]
Span = tuple[int, int]
Tools = Sequence[dict[str, Any]]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TODAY: ContextVar[datetime | None] = ContextVar("today", default=None)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in the form that a template takes, and the tools that the assistant may call."""

    turns: Sequence[Turn]
    tools: Tools | None = None
    null_content: bool = False
    """Whether the template has to see that a turn's content is null; see `_with_null`."""

    def upto(self, number: int) -> "Conversation":
        """Return the conversation's first turns."""
        if number == len(self.turns):
            return self
        return replace(self, turns=self.turns[:number])


class Unrenderable(Exception):
    """A row that the base's template cannot render: `what` for a list, `sentence` on its own."""

    def __init__(self, what: str, sentence: str, cure: str) -> None:
        super().__init__(what)
        self.what, self.sentence, self.cure = what, sentence, cure

    def as_error(self) -> DataError:
        return DataError(self.sentence, cure=self.cure)


class ChatTemplate:
    """A tokenizer's chat template; `date` is the day that it shows, as 2026-11-30, or today."""

    def __init__(
        self, tokenizer: Any, date: str | None = None, seconds: float = read_limits.TEMPLATE_SECONDS
    ) -> None:
        self.tokenizer = tokenizer
        self.date = date
        self._seconds = seconds

    def source(self, tools: Tools | None = None) -> str:
        """Return the template's text; of several named ones, the one that Transformers takes."""
        return str(self.tokenizer.get_chat_template(None, tools))

    @property
    def shows_date(self) -> bool:
        return "strftime_now" in str(self.tokenizer.chat_template)

    @property
    def marks_answers(self) -> bool:
        """Whether the template says itself what the assistant writes, by `generation` blocks."""
        return _GENERATION.search(str(self.tokenizer.chat_template)) is not None

    def texts(self, conversations: Sequence[Conversation], *, asks: bool) -> list[str]:
        """Render conversations, with the generation prompt where `asks`; raises Unrenderable.

        Raises ModelError where the template does not come to an end.
        """
        texts = [""] * len(conversations)
        plain = [n for n, c in enumerate(conversations) if not c.tools and not c.null_content]
        if plain:
            turns = [list(conversations[n].turns) for n in plain]
            some = self._apply(self._in_parts(turns), None, asks)
            for number, text in zip(plain, some, strict=True):
                texts[number] = text
        for number, each in enumerate(conversations):
            if each.null_content:
                texts[number] = self._with_null(each, asks)[0]
            elif each.tools:
                turns = self._in_parts([list(each.turns)])
                texts[number] = self._apply(turns, list(each.tools), asks)[0]
        return texts

    def text(self, conversation: Conversation, *, asks: bool) -> str:
        """Render one conversation; raises Unrenderable and ModelError."""
        return self.texts([conversation], asks=asks)[0]

    def marked(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """Render one conversation; return its text and the spans of its `generation` blocks."""
        turns = [
            {key: value for key, value in turn.items() if value is not None}
            for turn in self._in_parts([list(conversation.turns)])[0]
        ]
        text, blocks = self._rendered(turns, conversation.tools, return_assistant_tokens_mask=True)
        return text, [(int(start), int(end)) for start, end in blocks[0]]

    def _with_null(self, conversation: Conversation, asks: bool) -> tuple[str, Any]:
        """Render a conversation in which null is shown to the template.

        Templates of DeepSeek show a call only where the content `is none`, and
        `apply_chat_template` (Transformers 5.23) leaves out what is null.
        """
        (own,) = self._in_parts([list(conversation.turns)])
        turns = [{"content": None, **turn} for turn in own]
        return self._rendered(turns, conversation.tools, add_generation_prompt=asks)

    def _rendered(self, turns: list[Turn], tools: Tools | None, **options: Any) -> tuple[str, Any]:
        """Render one conversation with the function that `apply_chat_template` calls."""
        shown = self._guarded(
            lambda: chat_template_utils.render_jinja_template(
                [turns],
                tools=list(tools) if tools else None,
                chat_template=self.source(tools),
                **self.tokenizer.special_tokens_map,
                **options,
            )
        )
        return shown[0][0], shown[1]

    def _in_parts(self, conversations: list[list[Turn]]) -> list[list[Turn]]:
        """Make each text a list of one part where the template wants that."""
        if not _wants_parts(self.tokenizer, str(self.tokenizer.chat_template)):
            return conversations
        return [
            [{**turn, "content": _as_parts(turn.get("content"))} for turn in turns]
            for turns in conversations
        ]

    def _apply(self, turns: list[Any], tools: list[Any] | None, asks: bool) -> list[str]:
        def show() -> tuple[list[str], None]:
            shown = self.tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=asks
            )
            return list(shown), None

        return self._guarded(show)[0]

    def _guarded(self, show: Any) -> Any:
        """Call the template within the limits; its own errors become `Unrenderable`."""
        try:
            with _on(self.date, self.source() if self.shows_date else ""):
                shown = within(self._seconds, show, error=lambda: _endless(self._seconds))
            _require_readable(shown[0])
        except (ModelError, Unrenderable):
            raise
        except template_syntax.UNREADABLE as error:
            fault = f"chat template cannot be read: {template_syntax.said(error)}"
            cure = template_syntax.OTHER_TEMPLATE
            raise Unrenderable(f"this base's {fault}", f"This base's {fault}.", cure) from error
        except OverflowError as error:  # a loop longer than Jinja's sandbox allows
            fault = f"chat template loops too often: {template_syntax.said(error)}"
            cure = "Use a base with another chat template."
            raise Unrenderable(f"this base's {fault}", f"This base's {fault}.", cure) from error
        except Exception as error:
            said = str(error).removesuffix(".")
            raise Unrenderable(
                f"this base's chat template refuses it: {said}",
                f"This base's chat template refuses an example: {said}.",
                "Some templates need user and assistant in turn, without a system message.",
            ) from error
        return shown


def _endless(seconds: float) -> ModelError:
    return ModelError(
        f"This base's chat template did not finish within {seconds:g} seconds and was stopped.",
        cure="It may loop forever: use a base with another chat template.",
    )


def _require_readable(shown: Sequence[str]) -> None:
    """Raise Unrenderable where the rendered conversation is too long to be read."""
    longest = max(map(len, shown), default=0)
    if longest > read_limits.RENDERED_CHARACTERS:
        raise Unrenderable(
            f"this base's chat template turns it into {longest:,} characters",
            f"This base's chat template turns an example into {longest:,} characters.",
            f"At most {read_limits.RENDERED_CHARACTERS:,} are read: "
            "use a base with another chat template.",
        )


@lru_cache(32)
def _wants_parts(tokenizer: Any, chat_template: str) -> bool:
    """Tell whether a template shows a text only as a list of parts, as those of Idefics."""

    def shows(content: Any) -> bool:
        turns = [{"role": "user", "content": content}]
        try:
            return "qz0zq" in str(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            )
        except Exception:  # any error of a foreign template
            return False

    return bool(
        within(
            read_limits.PROMPT_SECONDS,
            lambda: not shows("qz0zq") and shows(_as_parts("qz0zq")),
            error=lambda: _endless(read_limits.PROMPT_SECONDS),
        )
    )


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@contextmanager
def _on(date: str | None, source: str) -> Iterator[None]:
    """Let `strftime_now` in a template tell a given date, at 00:00.

    Transformers 5.23 reads the clock itself and turns functions among the template's variables
    into text, so the function is replaced in its compiled template, which is cached.
    """
    if source:
        _follow_our_clock(source)
    token = _TODAY.set(datetime.fromisoformat(date) if date else None)
    try:
        yield
    finally:
        _TODAY.reset(token)


@lru_cache(64)
def _follow_our_clock(source: str) -> None:
    compiled: Any = chat_template_utils._compile_jinja_template(source)
    compiled.environment.globals["strftime_now"] = _strftime


def _strftime(pattern: str) -> str:
    return (_TODAY.get() or datetime.now()).strftime(pattern)
