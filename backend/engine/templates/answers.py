"""Where the assistant's answers begin and end in a rendered conversation.

An answer is what the model has to write after the generation prompt: the part of the text that
follows it, up to and with the end mark. So each answer is looked up in the conversation as the
template shows it up to there, where it is the last one. If the whole conversation shows it in the
same way, it is learned there; else it becomes a text of its own. Knows nothing of data or tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from functools import lru_cache
from typing import Any

from backend.engine.templates import end_marks
from backend.engine.templates.rendering import (
    ChatTemplate,
    Conversation,
    Span,
    Turn,
    Unrenderable,
)

_MARK = "qz1zq"
_TAG = re.compile(r"<[^<>\s]{1,64}>|\[[A-Z/_]{1,32}\]")
_THOUGHT = re.compile(r"\s*<(think|thinking|reasoning)>(.*?)</\1>", re.DOTALL)
OTHER_BASE = "Use a base with another chat template, or data in the text format."


class Remark(IntFlag):
    """What a reader should know about how a row was rendered."""

    SPLIT = 1  # it is learned in several texts, one for each answer
    TAUGHT_END = 2  # the template has no end mark, so the end-of-text token was added
    NO_THOUGHT = 4  # a thought is not shown by the template
    NOT_SHOWN = 8  # another turn, such as a system prompt, is not shown by the template
    OTHER_PROMPT = 32  # the generation prompt goes on in another way than the text before it
    NEW_RULE = 16  # version 0.1.0 would have refused it or learned another part of it


NOTHING = Remark(0)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text, the character spans in it that have a loss, and the question of the first one."""

    text: str
    spans: tuple[Span, ...]
    question: Span | None = None
    remarks: Remark = NOTHING


@dataclass(slots=True)
class _Answer:
    """An answer in the conversation up to it: its turn, the text, and its span there."""

    turn: int
    text: str
    start: int
    end: int
    taught_end: bool = False
    other_prompt: bool = False
    as_before: bool = False
    """Whether version 0.1.0 found the same place."""


def place(
    template: ChatTemplate,
    conversation: Conversation,
    learned: Sequence[int],
    *,
    thoughts: bool = True,
) -> list[Rendered]:
    """Return the texts that teach the answers at the turns `learned`, none of them twice.

    `thoughts=False` shows the thoughts before an answer, but they have no loss. Raises
    Unrenderable where an answer cannot be found in the text with certainty.
    """
    if not learned:
        return [Rendered(template.text(conversation, asks=False), ())]
    begun = [conversation.upto(turn + 1) for turn in learned]
    marked = [_with_mark(each) for each in begun]
    whole, *shown = template.texts([conversation, *begun, *marked], asks=False)
    prompts = _prompts(template, conversation, learned)
    answers = []
    for n, turn in enumerate(learned):
        looked = _Look(template, conversation, turn, shown[n], shown[len(begun) + n], prompts[n])
        answers.append(looked.answer())
    texts = _shared(answers, whole)
    return [_rendered(conversation, text, own, thoughts, len(texts)) for text, own in texts]


def prompt_in_training(template: ChatTemplate, asked: Conversation, prompt: str) -> str:
    """Return the part of a generation prompt that also stands before the answers in training.

    Some generation prompts open a thought that no answer in training has, as those of DeepSeek-R1.
    """
    conversation = Conversation([*asked.turns, {"role": "assistant", "content": _MARK}])
    try:
        shown = template.text(conversation, asks=False)
        start = _Look(template, conversation, len(asked.turns), shown, shown, prompt).start()
    except Unrenderable:
        return prompt
    return shown[:start] if prompt.startswith(shown[:start]) else prompt


def _with_mark(conversation: Conversation) -> Conversation:
    """Return a conversation whose last turn has a mark as its content."""
    *before, last = conversation.turns
    return Conversation([*before, {**last, "content": _MARK}], conversation.tools)


def _prompts(
    template: ChatTemplate, conversation: Conversation, learned: Sequence[int]
) -> list[str]:
    """Return the text that the model is given before each answer."""
    asked = [conversation.upto(turn) for turn in learned if turn]
    texts = iter(template.texts(asked, asks=True) if asked else [])
    return [
        next(texts) if turn else _opening(template.tokenizer, template.source()) for turn in learned
    ]


@lru_cache(32)
def _opening(tokenizer: Any, chat_template: str) -> str:
    """Return the text before an answer that opens the conversation.

    Templates cannot render a generation prompt without any turn, so it is taken from the end of
    the generation prompt after a question.
    """
    template = ChatTemplate(tokenizer)
    begun = str(tokenizer.bos_token or "")
    question = Conversation([{"role": "user", "content": "qz0zq"}])
    asked, unasked = (template.text(question, asks=asks) for asks in (True, False))
    prompt = asked.removeprefix(unasked) if asked.startswith(unasked) else ""
    answer = Conversation([{"role": "assistant", "content": _MARK}])
    first = template.text(answer, asks=False)
    return begun + prompt if first.startswith(begun + prompt) else begun


class _Look:
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

    def answer(self) -> _Answer:
        """Return where the answer is; raises Unrenderable where that is not certain."""
        start = self.start()
        content_end, end = self._ends()
        if self.template.marks_answers:
            start, content_end, end = self._as_marked(start, content_end, end)
        plain = _MARK in self.marked and not thought_of(self.said)
        header = self.text[start : self.marked.find(_MARK)] if plain else ""
        foreign = any(each in header for each in self._ends_of_turns() if each)
        if start >= content_end or foreign or not self._holds_answer(start, content_end):
            raise _unclear("does not show an answer as it is in the data")
        if end > content_end:
            follows = self.text.startswith(self.prompt)
            as_before = follows and start == len(self.prompt) and end == len(self.text.rstrip())
            other = not follows and self.prompt.startswith(self.text[:start])
            return _Answer(
                self.turn, self.text, start, end, other_prompt=other, as_before=as_before
            )
        mark = str(self.template.tokenizer.eos_token or "")
        text = self.text[:content_end] + mark
        return _Answer(self.turn, text, start, len(text), taught_end=bool(mark))

    def _ends_of_turns(self) -> tuple[str, ...]:
        """Return tokens that never stand between the beginning of an answer and its words."""
        tokenizer = self.template.tokenizer
        return str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")

    # -- the beginning ---------------------------------------------------------------------------

    def start(self) -> int:
        """Return where the answer begins; raises Unrenderable where that is not certain."""
        if self.text.startswith(self.prompt):
            return len(self.prompt)
        shared = _common(self.prompt, self.marked)
        start = _after_same_words(self.prompt[shared:], self.marked, shared)
        if start is None:
            start = _before_tag(self.marked, shared)
        if start >= self._history() and self.marked[:start] == self.text[:start]:
            return start
        return self._start_by_marks()

    def _history(self) -> int:
        """Return how much of the prompt are the turns before the answer."""
        if not self.turn:
            return 0
        before = self.template.text(self.conversation.upto(self.turn), asks=False)
        shared = _common(before, self.prompt)
        return shared if shared == len(before) else _before_tag(self.prompt, shared)

    def _start_by_marks(self) -> int:
        """Find the beginning where a prompt shows earlier turns in another way than the text.

        Then only what stands between the last turn and the answer is compared, found by marks.
        """
        content = self.marked.find(_MARK)
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
        before, _, tail = self.marked.partition(_MARK)
        if not self.said.get("tool_calls") and before != self.marked:
            return tail if _MARK not in tail and self.text.endswith(tail) else None
        usual = _usual_tail(self.template.tokenizer, self.template.source())
        if usual and self.text.endswith(usual):
            return usual
        last = end_marks.last_in(self.text, self.template.tokenizer)
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
        names = [str(call["function"]["name"]) for call in self.said.get("tool_calls") or ()]
        return answer in shown and all(name in shown for name in names)


def _unclear(what: str) -> Unrenderable:
    what = f"this base's chat template {what}, so the loss cannot be limited to the answer"
    return Unrenderable(what, f"{what[0].upper()}{what[1:]}.", OTHER_BASE)


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
    answer = {"role": "assistant", "content": _MARK}
    try:
        prompt = template.text(Conversation(turns), asks=True)
        shown = template.text(Conversation([*turns, answer]), asks=False).partition(_MARK)[0]
    except Unrenderable:
        return None
    after = [text.rpartition(f"qz{len(roles) - 1}qz")[2] for text in (prompt, shown)]
    if shown == after[1]:
        return None
    return len(after[1]) - _before_tag(after[1], _common(*after))


@lru_cache(32)
def _usual_tail(tokenizer: Any, chat_template: str) -> str:
    """Return what a template writes after the last answer."""
    turns = [{"role": "user", "content": "qz0zq"}, {"role": "assistant", "content": _MARK}]
    try:
        return ChatTemplate(tokenizer).text(Conversation(turns), asks=False).rpartition(_MARK)[2]
    except Unrenderable:
        return ""


# -- texts -------------------------------------------------------------------------------------


def _shared(answers: Sequence[_Answer], whole: str) -> list[tuple[str, list[_Answer]]]:
    """Group answers by a text that shows all of them as the model has to write them."""
    texts: list[tuple[str, list[_Answer]]] = []
    for answer in reversed(answers):
        if answer.taught_end:
            texts.append((answer.text, [answer]))
            continue
        fitting = [own for text, own in texts if _shows(text, answer) and not own[0].taught_end]
        if fitting:
            fitting[0].insert(0, answer)
        else:
            texts.append((whole if _shows(whole, answer) else answer.text, [answer]))
    return texts[::-1]


def _shows(text: str, answer: _Answer) -> bool:
    return text.startswith(answer.text[: answer.end])


def _rendered(
    conversation: Conversation, text: str, answers: list[_Answer], thoughts: bool, texts: int
) -> Rendered:
    spans, remarks = [], Remark.SPLIT if texts > 1 else NOTHING
    if texts > 1 or conversation.tools or not all(answer.as_before for answer in answers):
        remarks |= Remark.NEW_RULE
    for answer in answers:
        turn = conversation.turns[answer.turn]
        start, shown = answer.start, text[answer.start : answer.end]
        if "reasoning_content" in turn or "tool_calls" in turn:
            remarks |= Remark.NEW_RULE
        if thought := thought_of(turn):
            place = shown.find(thought)
            if place < 0:
                remarks |= Remark.NO_THOUGHT
            elif not thoughts:
                start += place + len(thought)
        spans.append((start, answer.end))
        remarks |= Remark.TAUGHT_END if answer.taught_end else NOTHING
        remarks |= Remark.OTHER_PROMPT if answer.other_prompt else NOTHING
    if _hides(conversation, answers[-1].turn, text):
        remarks |= Remark.NOT_SHOWN
    return Rendered(text, tuple(spans), _question(conversation, text, answers[0]), remarks)


def thought_of(turn: Turn) -> str:
    """Return the thought before a turn's answer, without its tags; empty where there is none."""
    own = turn.get("reasoning_content")
    if isinstance(own, str):
        return own.strip()
    found = _THOUGHT.match(str(turn.get("content") or ""))
    return found[2].strip() if found else ""


def _hides(conversation: Conversation, turns: int, text: str) -> bool:
    """Tell whether the words of one of the first turns, or a tool, are missing in the text."""
    words = [str(t.get("content") or "") for t in conversation.turns[:turns]
             if t["role"] != "assistant"]  # fmt: skip
    names = [str(tool.get("function", tool).get("name", "")) for tool in conversation.tools or ()]
    return any(each.strip() not in text for each in (*words, *names))


def _question(conversation: Conversation, text: str, answer: _Answer) -> Span | None:
    """Find the last question before an answer."""
    for turn in reversed(conversation.turns[: answer.turn]):
        if turn["role"] == "user":
            asked = str(turn.get("content") or "").strip()
            place = text.rfind(asked, 0, answer.start)
            return (place, place + len(asked)) if asked and place >= 0 else None
    return None
