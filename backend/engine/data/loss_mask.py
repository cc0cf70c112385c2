"""The loss mask: which tokens of a text are inside its character spans with loss.

A token counts if it has characters in a span. So the token that joins the blank at the end of a
prompt to the first word of an answer counts: the model has to write it. At the end only blanks may
follow within a token, as where an end mark takes the line break after it; no word after the span
counts. Asking the tokenizer for the offsets of every token takes as long as tokenising. For
byte-level tokenizers, whose tokens lie side by side, the two ends of each span are enough. Knows
nothing of conversations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, decoders

Span = tuple[int, int]
Flags = NDArray[np.bool_]


class Mask(NamedTuple):
    """Which tokens have a loss, (tokens,) bool, and whether one of them reaches beyond its span."""

    learned: Flags
    beyond: bool


def learned_tokens(
    encoding: Encoding, spans: Sequence[Span], text: str, *, side_by_side: bool
) -> Mask:
    """Return the mask of an encoding."""
    found = by_ends(encoding, spans, text) if side_by_side else None
    return by_places(encoding, spans, text) if found is None else found


def are_side_by_side(tokenizer: Any) -> bool:
    """Tell whether a tokenizer is byte-level: its tokens cover the text without gaps or overlap."""
    return isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel)


def by_places(encoding: Encoding, spans: Sequence[Span], text: str) -> Mask:
    """Compute the mask from the offsets of every token."""
    places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = places[:, 0], places[:, 1]
    learned = np.zeros(len(places), dtype=np.bool_)
    beyond = False
    for begin, finish in spans:
        inside = (starts < finish) & (ends > begin) & (ends > starts)
        for token in np.flatnonzero(inside & (ends > finish)):
            inside[token] = text[finish : ends[token]].isspace()
        learned |= inside
        beyond |= bool((inside & ((starts < begin) | (ends > finish))).any())
    return Mask(learned, beyond)


def by_ends(encoding: Encoding, spans: Sequence[Span], text: str) -> Mask | None:
    """Compute the mask from the first and last token of each span.

    Returns None where one of these characters has no token.
    """
    learned = np.zeros(len(encoding), dtype=np.bool_)
    beyond = False
    for begin, finish in spans:
        if begin >= finish:
            continue
        first, last = encoding.char_to_token(begin), encoding.char_to_token(finish - 1)
        if first is None or last is None:
            return None
        while last < len(encoding) and _is_within(encoding, last, finish, text):
            last += 1  # a character may take several tokens
        learned[first:last] = True
        if first < last:
            beyond |= _place(encoding, first)[0] < begin
            beyond |= _place(encoding, last - 1)[1] > finish
    return Mask(learned, beyond)


def tokens_of(encoding: Encoding, span: Span) -> Span:
    """Return the first token of a span and the one after its last; (0, 0) where it has none."""
    first, last = encoding.char_to_token(span[0]), encoding.char_to_token(span[1] - 1)
    return (0, 0) if first is None or last is None else (first, last + 1)


def _place(encoding: Encoding, token: int) -> Span:
    return encoding.token_to_chars(token) or (0, 0)  # None: added around the text


def _is_within(encoding: Encoding, token: int, finish: int, text: str) -> bool:
    start, end = _place(encoding, token)
    return start < finish and start < end and (end <= finish or text[finish:end].isspace())
