"""What a chat template puts around the turns of a conversation, learned once per order of roles.

A template renders a conversation in tens of microseconds, and where its answers lie takes one
rendering more for each end of each answer. Most templates only put the same words around the turns:
a frame holds those, so that one rendering is enough, and is checked to be what the frame says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

Span = tuple[int, int]
Turn = dict[str, str]
RenderTurns = Callable[[Sequence[Turn], bool], str]
"""Renders turns, with the prompt that asks for the next one if the flag is set."""
LONGEST = 16
"""Turns; of longer conversations each has an order of roles of its own."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The text around the turns, and for each answer its number and how long its ends' texts are.

    `around` has one piece more than there are turns. An answer begins `before` characters after the
    contents of the turns in front of it, and ends `upto` characters after those and its own.
    """

    around: tuple[str, ...]
    answers: tuple[tuple[int, int, int], ...]

    def spans(self, contents: Sequence[str], text: str) -> tuple[Span, ...] | None:
        """Return where a rendered conversation's answers lie; None where it has another frame."""
        if "".join(chain.from_iterable(zip_longest(self.around, contents, fillvalue=""))) != text:
            return None
        lengths = [0]
        for content in contents:
            lengths.append(lengths[-1] + len(content))
        return tuple(
            (lengths[i] + before, lengths[i + 1] + upto) for i, before, upto in self.answers
        )


def learn(roles: Sequence[str], render: RenderTurns) -> Frame | None:
    """Return the frame of conversations with these roles; None where the template has none.

    `render` may raise whatever the template raises.
    """
    marks = [f"qz{number}zq" for number in range(len(roles))]
    turns = [{"role": r, "content": mark} for r, mark in zip(roles, marks, strict=True)]
    around = _pieces(render(turns, False), marks)
    if around is None:
        return None
    answers = []
    for number, role in enumerate(roles):
        if role != "assistant":
            continue
        before = _pieces(render(turns[:number], True), marks[:number])
        upto = _pieces(render(turns[: number + 1], False).rstrip(), marks[: number + 1])
        if not (_begins(around, before) and _begins(around, upto) and before and upto and upto[-1]):
            return None
        sizes = sum(map(len, before)), sum(map(len, upto))
        answers.append((number, *sizes))
    return Frame(tuple(around), tuple(answers))


def _pieces(text: str, marks: Sequence[str]) -> list[str] | None:
    """Split a text at marks that stand in it once each and in order; None where they do not."""
    pieces, rest = [], text
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found:
            return None
        pieces.append(piece)
    pieces.append(rest)
    return None if any(mark in piece for mark in marks for piece in pieces) else pieces


def _begins(around: Sequence[str], pieces: Sequence[str] | None) -> bool:
    """Tell whether the whole text begins with these pieces, whatever the contents are."""
    if not pieces:
        return False
    last = len(pieces) - 1
    return list(around[:last]) == list(pieces[:last]) and around[last].startswith(pieces[last])
