"""Texts as tokens, each with its place in the text, and the tokens inside character spans.

Asking a tokenizer for the places of its tokens takes half as long again as tokenising. The tokens
of a byte-level tokenizer lie side by side, so their lengths say where they are. This is used only
where their bytes are exactly those of the texts. Knows nothing of conversations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

from backend.engine.data.token_arrays import Flags, Ints

Span = tuple[int, int]
TRIED = (" A word,  and", "others.\n\n caf\u00e9 \u6f22 ", "x")
_PIECES: WeakKeyDictionary[Any, "_Pieces | None"] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Tokens of some texts, one after the other, with places in `text`, which is all texts joined.

    ids: (tokens,) int32; starts, ends: (tokens,) int64, in characters, equal for a token that
    stands for none; counts: (texts,) int64, the tokens of each text.
    """

    text: str
    ids: NDArray[np.int32]
    starts: Ints
    ends: Ints
    counts: Ints

    @property
    def last(self) -> Ints:
        """Return the place after each text's last token: (texts,) int64."""
        return np.cumsum(self.counts)

    def text_of(self, tokens: Any) -> Any:
        """Return the number of each token's text."""
        return np.searchsorted(self.last, tokens, "right")

    def at(self, characters: Ints) -> Ints:
        """Return the first token of each character, -1 where it has none."""
        if not len(self.ids):
            return np.full_like(characters, -1)
        found = np.minimum(np.searchsorted(self.ends, characters, "right"), len(self.ids) - 1)
        has = (self.starts[found] <= characters) & (characters < self.ends[found])
        return np.where(has, found, -1)

    def inside(self, spans: Sequence[Span]) -> tuple[Flags, Ints]:
        """Return which tokens are inside the spans, (tokens,) bool, and which of these reach out.

        The spans, in characters, are in order and do not overlap. A token counts if it has
        characters in a span. So the token that joins the blank at the end of a prompt to the first
        word of an answer counts: the model has to write it. At the end only blanks may follow
        within a token, as where an end mark takes the line break after it.
        """
        begins, finishes = np.array([(0, 0), *spans], dtype=np.int64).T
        total = np.cumsum(np.append(0, finishes - begins))

        def before(places: Ints) -> Any:
            """Count the characters in spans before each place."""
            span = np.maximum(np.searchsorted(begins, places) - 1, 0)
            return total[span] + np.minimum(places, finishes[span]) - begins[span]

        shared = before(self.ends) - before(self.starts)
        found = shared > 0
        reaching = np.flatnonzero(found & (shared < self.ends - self.starts))
        for token in reaching.tolist():
            end = self.ends[token]
            finish = finishes[np.searchsorted(begins, end) - 1]
            found[token] = not self.text[finish:end].strip()
        return found, reaching[found[reaching]]


def tokenised(texts: Sequence[str], tokenizer: Any, *, special: bool) -> TextTokens:
    """Tokenise texts, at least one; `special` adds what the tokenizer adds around a text."""
    backend = tokenizer.backend_tokenizer
    added = backend.num_special_tokens_to_add(False) if special else 0
    pieces = None if added else _pieces_of(tokenizer)
    found = None
    if pieces is not None and backend.encode_special_tokens == tokenizer.split_special_tokens:
        found = _side_by_side(texts, backend, pieces)
    return _as_told(texts, tokenizer, special) if found is None else found


def _side_by_side(texts: Sequence[str], backend: Tokenizer, pieces: "_Pieces") -> TextTokens | None:
    """Tokenise texts; None unless the bytes of the tokens are exactly those of each text."""
    found = [each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)]
    ids = list(chain.from_iterable(found))
    own = list(map(pieces.__getitem__, ids))
    text = "".join(texts)
    encoded = text.encode()
    if b"".join(own) != encoded:
        return None
    places = np.cumsum([0, *map(len, own)])
    character = np.cumsum(np.frombuffer(encoded, dtype=np.uint8) & 0xC0 != 0x80)  # from 1
    starts, ends = character[places[:-1]] - 1, character[places[1:] - 1]
    counts = np.array([len(each) for each in found], dtype=np.int64)
    last = np.cumsum(counts)
    if (np.append(0, ends)[last] != np.cumsum([len(each) for each in texts])).any():
        return None
    return TextTokens(text, np.array(ids, dtype=np.int32), starts, ends, counts)


def _as_told(texts: Sequence[str], tokenizer: Any, special: bool) -> TextTokens:
    """Tokenise texts, with the places that the tokenizer tells."""
    output = tokenizer(
        list(texts),
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    counts = np.array([len(ids) for ids in output["input_ids"]], dtype=np.int64)
    told = chain.from_iterable(each.offsets for each in output.encodings)
    places = np.fromiter(chain.from_iterable(told), np.int64, 2 * int(counts.sum())).reshape(-1, 2)
    begins = np.repeat(np.cumsum([0, *map(len, texts)])[:-1], counts)
    starts, ends = places.T + begins
    # Tokens around a text are all at its beginning, and `TextTokens.at` needs ends in order. Some
    # tokenizers leave blanks out of their tokens' places, so a token of blanks has none.
    nowhere, ends = starts == ends, np.maximum.accumulate(ends)
    starts = np.where(nowhere, np.maximum(np.append(0, ends[:-1]), begins), starts)
    ids = np.fromiter(chain.from_iterable(output["input_ids"]), np.int32, len(places))
    return TextTokens("".join(texts), ids, starts, ends, counts)


class _Pieces(dict[int, bytes]):
    """The bytes of each token of a byte-level tokenizer, found when they are first needed."""

    def __init__(self, backend: Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        super().__init__({id: token.content.encode() or b"\xff" for id, token in added.items()})
        self._name_of = backend.id_to_token
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256, those of Latin-1 as they are
        own = {ord(letter): ord(letter) for letter in letters if ord(letter) < 256}
        others = (byte for byte in range(256) if byte not in own)
        self._bytes = own | dict(zip(map(ord, letters[len(own) :]), others, strict=True))

    def __missing__(self, id: int) -> bytes:
        values = [self._bytes.get(ord(letter), 0xFF) for letter in self._name_of(id) or "\uffff"]
        piece = self[id] = bytes(values) or b"\xff"  # which no text in UTF-8 contains
        return piece


def _pieces_of(tokenizer: Any) -> _Pieces | None:
    """Return the bytes of a tokenizer's tokens; None where they are not those of the text."""
    if tokenizer not in _PIECES:
        tokenizer(TRIED[0])  # ends any padding and truncation that its file or a caller has set
        pieces = _Pieces(tokenizer.backend_tokenizer)
        found = _side_by_side(TRIED, tokenizer.backend_tokenizer, pieces)
        _PIECES[tokenizer] = pieces if found else None
    return _PIECES[tokenizer]
