"""The loss mask: which tokens of a text are inside its character spans with loss.

A token counts if it has characters and all of them are inside a span. Asking the tokenizer for the
offsets of every token takes as long as tokenising. For byte-level tokenizers, whose tokens lie side
by side, the two ends of each span are enough. Knows nothing of conversations.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, decoders

Span = tuple[int, int]
Flags = NDArray[np.bool_]


def learned_tokens(encoding: Encoding, spans: Sequence[Span], *, side_by_side: bool) -> Flags:
    """Return a flag for each token of an encoding, (tokens,) bool: whether it has a loss."""
    found = by_ends(encoding, spans) if side_by_side else None
    return by_places(encoding, spans) if found is None else found


def are_side_by_side(tokenizer: Any) -> bool:
    """Tell whether a tokenizer is byte-level: its tokens cover the text without gaps or overlap."""
    return isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel)


def by_places(encoding: Encoding, spans: Sequence[Span]) -> Flags:
    """Compute the mask, (tokens,) bool, from the offsets of every token."""
    places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = places[:, 0], places[:, 1]
    learned = np.zeros(len(places), dtype=np.bool_)
    for begin, finish in spans:
        learned |= (starts >= begin) & (ends <= finish) & (ends > starts)
    return learned


def by_ends(encoding: Encoding, spans: Sequence[Span]) -> Flags | None:
    """Compute the mask, (tokens,) bool, from the first and last token of each span.

    Returns None where one of these characters has no token.
    """
    learned = np.zeros(len(encoding), dtype=np.bool_)
    for begin, finish in spans:
        if begin >= finish:
            continue
        first, last = encoding.char_to_token(begin), encoding.char_to_token(finish - 1)
        if first is None or last is None:
            return None
        while first <= last and _place(encoding, first)[0] < begin:
            first += 1  # this token starts before the span
        while last < len(encoding) and _is_within(encoding, last, begin, finish):
            last += 1  # a character may take several tokens
        learned[first:last] = True
    return learned


def _place(encoding: Encoding, token: int) -> Span:
    return encoding.token_to_chars(token) or (0, 0)  # None: added around the text


def _is_within(encoding: Encoding, token: int, begin: int, finish: int) -> bool:
    start, end = _place(encoding, token)
    return begin <= start < end <= finish
