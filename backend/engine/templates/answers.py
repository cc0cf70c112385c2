"""Where the assistant's answers begin and end in a rendered conversation.

An answer is what the model has to write after the generation prompt: the part of the text that
follows it, up to and with the end mark. So each answer is looked up in the conversation as the
template shows it up to there, where it is the last one. If the whole conversation shows it in the
same way, it is learned there; else it becomes a text of its own. Knows nothing of data or tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

from backend.engine.templates import tool_forms
from backend.engine.templates.answer_search import MARK, Answer, AnswerSearch, is_shown, thought_of
from backend.engine.templates.rendering import (
    ChatTemplate,
    Conversation,
    Span,
    Unrenderable,
)


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
    assert all(conversation.turns[turn]["role"] == "assistant" for turn in learned)
    if not learned:
        return [Rendered(template.text(conversation, asks=False), ())]
    begun = [conversation.upto(turn + 1) for turn in learned]
    marked = [_with_mark(each) for each in begun]
    whole, *shown = template.texts([conversation, *begun, *marked], asks=False)
    prompts = _prompts(template, conversation, learned)
    answers = []
    for n, turn in enumerate(learned):
        text, with_mark = shown[n], shown[len(begun) + n]
        search = AnswerSearch(template, conversation, turn, text, with_mark, prompts[n])
        answers.append(search.answer())
    texts = _shared(answers, whole)
    return [
        _rendered(template, conversation, text, own, thoughts=thoughts, alone=len(texts) == 1)
        for text, own in texts
    ]


def prompt_in_training(template: ChatTemplate, asked: Conversation, prompt: str) -> str:
    """Return the part of a generation prompt that also stands before the answers in training.

    Some generation prompts open a thought that no answer in training has, as those of DeepSeek-R1.
    """
    conversation = Conversation([*asked.turns, {"role": "assistant", "content": MARK}])
    try:
        shown = template.text(conversation, asks=False)
        start = AnswerSearch(template, conversation, len(asked.turns), shown, shown, prompt).start()
    except Unrenderable:
        return prompt
    return shown[:start] if prompt.startswith(shown[:start]) else prompt


def _with_mark(conversation: Conversation) -> Conversation:
    """Return a conversation whose last turn has a mark as its content."""
    *before, last = conversation.turns
    return Conversation([*before, {**last, "content": MARK}], conversation.tools)


def _prompts(
    template: ChatTemplate, conversation: Conversation, learned: Sequence[int]
) -> list[str]:
    """Return the text that the model is given before each answer; none before the first turn."""
    asked = [conversation.upto(turn) for turn in learned if turn]
    texts = iter(template.texts(asked, asks=True) if asked else [])
    return [next(texts) if turn else "" for turn in learned]


# -- texts -------------------------------------------------------------------------------------


def _shared(answers: Sequence[Answer], whole: str) -> list[tuple[str, list[Answer]]]:
    """Group answers by a text that shows all of them as the model has to write them."""
    texts: list[tuple[str, list[Answer]]] = []
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


def _shows(text: str, answer: Answer) -> bool:
    return text.startswith(answer.text[: answer.end])


def _rendered(
    template: ChatTemplate,
    conversation: Conversation,
    text: str,
    answers: list[Answer],
    *,
    thoughts: bool,
    alone: bool,
) -> Rendered:
    spans, remarks = [], NOTHING if alone else Remark.SPLIT
    if not alone or conversation.tools or not all(answer.as_before for answer in answers):
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
    hides_tools = bool(conversation.tools) and not tool_forms.shows_tools(template)
    if hides_tools or _hides(conversation, answers[-1].turn, text):
        remarks |= Remark.NOT_SHOWN
    return Rendered(text, tuple(spans), _question(conversation, text, answers[0]), remarks)


def _hides(conversation: Conversation, turns: int, text: str) -> bool:
    """Tell whether the words of one of the first turns, or the tools, are missing in the text."""
    words = [str(t.get("content") or "") for t in conversation.turns[:turns]
             if t["role"] != "assistant"]  # fmt: skip
    return not all(is_shown(each, text) for each in words)


def _question(conversation: Conversation, text: str, answer: Answer) -> Span | None:
    """Find the last question before an answer."""
    for turn in reversed(conversation.turns[: answer.turn]):
        if turn["role"] == "user":
            asked = str(turn.get("content") or "").strip()
            place = text.rfind(asked, 0, answer.start)
            return (place, place + len(asked)) if asked and place >= 0 else None
    return None
