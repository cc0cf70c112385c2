"""The search for one answer in a text: where it begins, where it ends, and the proof of both.

The text shows the conversation up to the answer, so the answer is its last turn. Knows nothing of
other answers.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from backend.engine.templates import end_marks
from backend.engine.templates.rendering import ChatTemplate, Conversation, Turn, Unrenderable

MARK = "qz1zq"
"""Stands for the content of an answer."""
OTHER_BASE = "Use a base with another chat template, or data in the text format."
_TAG = re.compile(r"<[^<>\s]{1,64}>|\[[A-Z/_]{1,32}\]")
_THOUGHT = re.compile(r"\s*<(think|thinking|reasoning)>(.*?)</\1>", re.DOTALL)


@dataclass(slots=True)
class Answer:
    """An answer in the conversation up to it: its turn, the text, and its span there."""

    turn: int
    text: str
    start: int
    end: int
    taught_end: bool = False
    other_prompt: bool = False
    as_before: bool = False
    """Whether version 0.1.0 found the same place."""


class AnswerSearch:
    """The search for one answer: `text` shows the conversation up to it, `marked` the same with a
    mark as its content, and `prompt` is what the model is given."""

    def __init__(
        self,
        template: ChatTemplate,
        conversation: Conversation,
        turn: int,
        text: str,
        marked: str,
        prompt: str,
    ) -> None:
        self.template = template
        self.conversation = conversation
        self.turn = turn
        self.text, self.marked, self.prompt = text, marked, prompt

    @property
    def said(self) -> Turn:
        return dict(self.conversation.turns[self.turn])

    def answer(self) -> Answer:
        """Return where the answer is; raises Unrenderable where that is not certain."""
        start = self.start()
        content_end, end = self._ends()
        if self.template.marks_answers:
            start, content_end, end = self._as_marked(start, content_end, end)
        plain = MARK in self.marked and not thought_of(self.said)
        header = self.text[start : self.marked.find(MARK)] if plain else ""
        foreign = any(each in header for each in self._ends_of_turns() if each)
        if start >= content_end or foreign or not self._holds_answer(start, content_end):
            raise _unclear("does not show an answer as it is in the data")
        if end > content_end:
            follows = not self.turn or self.text.startswith(self.prompt)
            began = start if not self.turn else len(self.prompt)
            as_before = follows and start == began and end == len(self.text.rstrip())
            other = not follows and self.prompt.startswith(self.text[:start])
            return Answer(self.turn, self.text, start, end, other_prompt=other, as_before=as_before)
        mark = str(self.template.tokenizer.eos_token or "")
        text = self.text[:content_end] + mark
        return Answer(self.turn, text, start, len(text), taught_end=bool(mark))

    def _ends_of_turns(self) -> tuple[str, ...]:
        """Return tokens that never stand between the beginning of an answer and its words."""
        tokenizer = self.template.tokenizer
        return str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")

    # -- the beginning ---------------------------------------------------------------------------

    def start(self) -> int:
        """Return where the answer begins; raises Unrenderable where that is not certain."""
        if not self.turn:
            return self._start_of_all()
        if self.text.startswith(self.prompt):
            return len(self.prompt)
        shared = _common(self.prompt, self.marked)
        start = _after_same_words(self.prompt[shared:], self.marked, shared)
        if start is None:
            start = _before_tag(self.marked, shared)
        if start >= self._history() and self.marked[:start] == self.text[:start]:
            return start
        return self._start_by_marks()

    def _start_of_all(self) -> int:
        """Find the beginning of an answer that opens the conversation.

        Templates cannot render a generation prompt without any turn, so the prompt after a
        question is looked for before the answer.
        """
        before = self.marked.partition(MARK)[0]
        asks = _asks(self.template.tokenizer, self.template.source(self.conversation.tools))
        length = next((n for n in range(len(asks), 0, -1) if asks[:n] in before), 0)
        start = _before_tag(before, before.rfind(asks[:length]) + length) if length else 0
        if not asks[:length].strip() or before == self.marked:
            start = len(before) if not asks.strip() else -1
        if start < 0 or self.text[:start] != self.marked[:start]:
            raise _unclear("does not show where an answer that opens the conversation begins")
        return start

    def _history(self) -> int:
        """Return how much of the prompt are the turns before the answer."""
        before = self.template.text(self.conversation.upto(self.turn), asks=False)
        shared = _common(before, self.prompt)
        return shared if shared == len(before) else _before_tag(self.prompt, shared)

    def _start_by_marks(self) -> int:
        """Find the beginning where a prompt shows earlier turns in another way than the text.

        Then only what stands between the last turn and the answer is compared, found by marks.
        """
        content = self.marked.find(MARK)
        lead = _lead(self.template, self._roles()) if self.turn else None
        if lead is None or content < 0 or self.text[:content] != self.marked[:content]:
            raise _unclear("does not show where an answer begins")
        return content - lead

    def _roles(self) -> tuple[str, ...]:
        return tuple(turn["role"] for turn in self.conversation.turns[: self.turn])

    # -- the end ---------------------------------------------------------------------------------

    def _ends(self) -> tuple[int, int]:
        """Return where the answer's own text ends, and where its end mark does."""
        tokenizer = self.template.tokenizer
        tail = self._tail()
        if tail is None:
            raise _unclear("does not show where an answer ends")
        content_end = len(self.text) - len(tail)
        return content_end, content_end + end_marks.length_in(tail, tokenizer)

    def _tail(self) -> str | None:
        """Return what the template writes after the answer; None where that is not clear."""
        before, _, tail = self.marked.partition(MARK)
        if not self.said.get("tool_calls") and before != self.marked:
            return tail if MARK not in tail and self.text.endswith(tail) else None
        usual = _usual_tail(self.template.tokenizer, self.template.source())
        if usual and self.text.endswith(usual):
            return usual
        tokenizer = self.template.tokenizer
        last = end_marks.last_in(self.text, tokenizer)
        if last and tokenizer.convert_tokens_to_ids(last) not in end_marks.end_tokens(tokenizer):
            last = ""  # it is a part of the call
        return self.text[len(self.text.rstrip()) - len(last) :]

    # -- the template's own marks, and the proof -------------------------------------------------

    def _as_marked(self, start: int, content_end: int, end: int) -> tuple[int, int, int]:
        """Take the beginning from the template's `generation` blocks where they are plausible."""
        text, blocks = self.template.marked(self.conversation.upto(self.turn + 1))
        own = [block for block in blocks if block[0] >= start]
        if text != self.text or not own or own[-1][1] < content_end:
            return start, content_end, end
        if not self._holds_answer(own[0][0], content_end):
            return start, content_end, end
        return own[0][0], content_end, end

    def _holds_answer(self, start: int, end: int) -> bool:
        """Tell whether a part of the text holds what the assistant says and calls, and no more."""
        shown = self.text[start:end]
        said = str(self.said.get("content") or "")
        answer = _THOUGHT.sub("", said).strip() if said.strip() not in shown else said.strip()
        if "</think>" in answer and answer not in shown:
            answer = answer.rpartition("</think>")[2].strip()
        calls = self.said.get("tool_calls") or ()
        names = Counter(str(call["function"]["name"]) for call in calls)
        values = [v for call in calls for v in _leaves(call["function"]["arguments"])]
        return (
            answer in shown
            and all(shown.count(name) >= count for name, count in names.items())
            and all(is_shown(value, shown) for value in values)
        )


def _unclear(what: str) -> Unrenderable:
    what = f"this base's chat template {what}, so the loss cannot be limited to the answer"
    return Unrenderable(what, f"{what[0].upper()}{what[1:]}.", OTHER_BASE)


def _leaves(value: Any) -> Iterator[str]:
    """Yield the texts and numbers in the arguments of a call."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def is_shown(words: str, text: str) -> bool:
    """Tell whether a text holds some words, as they are or as JSON writes them."""
    words = words.strip()
    return words in text or any(
        json.dumps(words, ensure_ascii=ascii_only)[1:-1] in text for ascii_only in (False, True)
    )


def _common(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(place for place in range(length) if one[place] != other[place])


def _after_same_words(words: str, text: str, place: int) -> int | None:
    """Return the place after the same words in a text, whatever blanks are between them.

    None where the text goes on with other words, or there are none.
    """
    wanted = words.split()
    for word in wanted:
        rest = text[place:].lstrip()
        if not rest.startswith(word):
            return None
        place = len(text) - len(rest) + len(word)
    return place if wanted else None


def _before_tag(text: str, place: int) -> int:
    """Return a place in a text, moved before a tag such as <think> that it would cut in two."""
    for tag in _TAG.finditer(text, max(0, place - 64), place + 64):
        if tag.start() < place < tag.end():
            return tag.start()
    return place


def _lead(template: ChatTemplate, roles: tuple[str, ...]) -> int | None:
    """Return how many characters an answer begins before its content, after turns of these roles.

    They are part of the text that has to be learned: usually none or a blank.
    """
    turns = [{"role": role, "content": f"qz{n}qz"} for n, role in enumerate(roles)]
    answer = {"role": "assistant", "content": MARK}
    try:
        prompt = template.text(Conversation(turns), asks=True)
        shown = template.text(Conversation([*turns, answer]), asks=False).partition(MARK)[0]
    except Unrenderable:
        return None
    after = [text.rpartition(f"qz{len(roles) - 1}qz")[2] for text in (prompt, shown)]
    if shown == after[1]:
        return None
    return len(after[1]) - _before_tag(after[1], _common(*after))


@lru_cache(32)
def _asks(tokenizer: Any, chat_template: str) -> str:
    """Return what a generation prompt adds after a question."""
    template = ChatTemplate(tokenizer)
    question = Conversation([{"role": "user", "content": "qz0zq"}])
    asked, unasked = (template.text(question, asks=asks) for asks in (True, False))
    return asked.removeprefix(unasked) if asked.startswith(unasked) else ""


@lru_cache(32)
def _usual_tail(tokenizer: Any, chat_template: str) -> str:
    """Return what a template writes after the last answer."""
    turns = [{"role": "user", "content": "qz0zq"}, {"role": "assistant", "content": MARK}]
    try:
        return ChatTemplate(tokenizer).text(Conversation(turns), asks=False).rpartition(MARK)[2]
    except Unrenderable:
        return ""


def thought_of(turn: Turn) -> str:
    """Return the thought before a turn's answer, without its tags; empty where there is none."""
    own = turn.get("reasoning_content")
    if isinstance(own, str):
        return own.strip()
    found = _THOUGHT.match(str(turn.get("content") or ""))
    return found[2].strip() if found else ""
