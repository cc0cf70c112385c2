"""The fixed text that a chat template puts around the turns, found once per order of roles.

Rendering a conversation takes tens of microseconds, and finding its answers takes one more
rendering for each end of each answer. Most templates put the same text around the turns. A frame
holds that text, so one rendering is enough; it is then checked against the frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

Span = tuple[int, int]
Turn = dict[str, str]
RenderTurns = Callable[[Sequence[Turn], bool], str]
"""Renders turns, with the generation prompt if the flag is set."""
LONGEST = 16
"""In turns; longer conversations rarely share an order of roles, so they get no frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The text around the turns, and for each answer its turn number, `before` and `upto`.

    `around` has one piece more than there are turns. The contents of the turns aside, there are
    `before` characters before an answer's start and `upto` characters before its end.
    """

    around: tuple[str, ...]
    answers: tuple[tuple[int, int, int], ...]

    def spans(self, contents: Sequence[str], text: str) -> tuple[Span, ...] | None:
        """Return the answers' spans in a rendered conversation; None where the frame is another."""
        if "".join(chain.from_iterable(zip_longest(self.around, contents, fillvalue=""))) != text:
            return None
        lengths = [0]
        for content in contents:
            lengths.append(lengths[-1] + len(content))
        return tuple(
            (lengths[i] + before, lengths[i + 1] + upto) for i, before, upto in self.answers
        )


def learn(roles: Sequence[str], render: RenderTurns) -> Frame | None:
    """Return the frame for an order of roles; None where the template has none.

    `render` may raise any error that the template raises.
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
    """Split a text at marks that must occur once each and in order; None where they do not."""
    pieces, rest = [], text
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found:
            return None
        pieces.append(piece)
    pieces.append(rest)
    return None if any(mark in piece for mark in marks for piece in pieces) else pieces


def _begins(around: Sequence[str], pieces: Sequence[str] | None) -> bool:
    """Tell whether the whole text starts with these pieces, for any contents."""
    if not pieces:
        return False
    last = len(pieces) - 1
    return list(around[:last]) == list(pieces[:last]) and around[last].startswith(pieces[last])
