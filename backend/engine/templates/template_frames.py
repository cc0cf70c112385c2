"""The fixed text that a chat template puts around the turns, found once per order of roles.

Rendering a conversation takes tens of microseconds, and finding its answers takes three more
renderings for each. Most templates put the same text around the turns. A frame holds that text and
where the answers are in it, so that rendering is enough; what comes out is checked against the
frame. Knows nothing of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, zip_longest
from typing import Any

from backend.engine.templates.answers import Remark, Rendered, place
from backend.engine.templates.rendering import ChatTemplate, Conversation, Span, Unrenderable

LONGEST = 16
"""In turns; longer conversations rarely share an order of roles, so they get no frame."""
_Place = tuple[int, int]
"""So many contents come before a place, and so many characters of the template."""


@dataclass(frozen=True, slots=True)
class _Text:
    """One text of a conversation: its first `turns`, the text around them, and the places in it.

    `added` is the end mark that the template does not have, in place of the last piece.
    """

    turns: int
    around: tuple[str, ...]
    added: str
    spans: tuple[tuple[_Place, _Place], ...]
    question: tuple[_Place, _Place] | None
    remarks: Remark

    def filled(self, contents: Sequence[str], text: str) -> Rendered | None:
        """Return the rendered conversation with its places; None where the frame is another."""
        own = contents[: self.turns]
        if "".join(chain.from_iterable(zip_longest(self.around, own, fillvalue=""))) != text:
            return None
        if self.added:
            text = text[: len(text) - len(self.around[-1])] + self.added
        lengths = [0]
        for content in own:
            lengths.append(lengths[-1] + len(content))
        spans = [
            (lengths[before] + start, lengths[upto] + end)
            for (before, start), (upto, end) in self.spans
        ]
        asked = None
        if self.question:
            (before, start), (upto, end) = self.question
            asked = lengths[before] + start, lengths[upto] + end
        return Rendered(text, tuple(spans), asked, self.remarks)


@dataclass(frozen=True, slots=True)
class Frame:
    """The texts that a conversation with one order of roles becomes."""

    texts: tuple[_Text, ...]

    def beginnings(self, conversation: Conversation) -> list[Conversation]:
        """Return what has to be rendered: the conversation up to the end of each text."""
        return [conversation.upto(text.turns) for text in self.texts]

    def filled(self, contents: Sequence[str], shown: Sequence[str]) -> list[Rendered] | None:
        """Return the texts with their places; None where the template shows something else.

        Templates that strip the contents of the turns are recognised, too.
        """
        return self._filled(contents, shown) or self._filled(
            [content.strip() for content in contents], shown
        )

    def _filled(self, contents: Sequence[str], shown: Sequence[str]) -> list[Rendered] | None:
        found: list[Rendered] = []
        for text, one in zip(self.texts, shown, strict=True):
            if (filled := text.filled(contents, one)) is None:
                return None
            found.append(filled)
        return found


def frame_of(
    template: ChatTemplate, roles: tuple[str, ...], learned: tuple[int, ...]
) -> Frame | None:
    """Return a template's frame for an order of roles; None where it has none."""
    if len(roles) > LONGEST or not learned:
        return None
    source = str(template.tokenizer.chat_template)
    return _frame(template.tokenizer, source, template.date, roles, learned)


@lru_cache(256)
def _frame(
    tokenizer: Any,
    chat_template: str,
    date: str | None,
    roles: tuple[str, ...],
    learned: tuple[int, ...],
) -> Frame | None:
    """Learn a frame from a conversation of marks; cached by the template's text, too."""
    template = ChatTemplate(tokenizer, date)
    marks = [f"qz{number}qz" for number in range(len(roles))]
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    conversation = Conversation(turns)
    try:
        rendered = place(template, conversation, learned)
        texts = [_text(template, conversation, each, marks) for each in rendered]
    except Unrenderable:
        return None
    found = [text for text in texts if text is not None]
    return Frame(tuple(found)) if len(found) == len(texts) else None


def _text(
    template: ChatTemplate, conversation: Conversation, rendered: Rendered, marks: Sequence[str]
) -> _Text | None:
    """Return one text as pieces around the marks; None where a mark is not shown once, in order."""
    fewest = max(number for number, mark in enumerate(marks, 1) if mark in rendered.text)
    for turns in range(fewest, len(marks) + 1):
        shown = template.text(conversation.upto(turns), asks=False)
        around = _pieces(shown, marks[:turns])
        if around and (added := _added(rendered, shown, around)) is not None:
            return _of(rendered, marks[:turns], around, added)
    return None


def _added(rendered: Rendered, shown: str, around: Sequence[str]) -> str | None:
    """Return the end mark that was added to a rendered text; None where that is another text."""
    if rendered.text == shown:
        return ""
    body = shown[: len(shown) - len(around[-1])]
    fits = Remark.TAUGHT_END & rendered.remarks and rendered.text.startswith(body)
    return rendered.text[len(body) :] if fits else None


def _of(rendered: Rendered, marks: Sequence[str], around: Sequence[str], added: str) -> _Text:
    starts = [rendered.text.index(mark) for mark in marks]

    def at(place: int) -> _Place:
        before = sum(start + len(mark) <= place for start, mark in zip(starts, marks, strict=True))
        return before, place - sum(map(len, marks[:before]))

    def both(span: Span) -> tuple[_Place, _Place]:
        return at(span[0]), at(span[1])

    spans = tuple(map(both, rendered.spans))
    question = both(rendered.question) if rendered.question else None
    return _Text(len(marks), tuple(around), added, spans, question, rendered.remarks)


def _pieces(text: str, marks: Sequence[str]) -> list[str] | None:
    """Split a text at marks that must occur once each and in order; None where they do not."""
    pieces, rest = [], text
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found:
            return None
        pieces.append(piece)
    pieces.append(rest)
    return None if any(mark in piece for mark in marks for piece in pieces) else pieces
