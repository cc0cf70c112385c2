"""Tokenised rows in flat arrays, in memory or mapped from a file.

A hundred thousand examples are a few arrays, not as many objects: `Documents` creates each example
when it is accessed. Knows nothing of texts or tokenizers.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from backend.engine.data.dataset import Keys, Noticed, Problems
from backend.results.data import place_of

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
PER_ROW = ("numbers", "keys", "blank", "special", "asked", "remarks")
ARRAYS = ("ids", "learned", "offsets", *PER_ROW)


@dataclass
class Tokens:
    """One tokenised text. ids: (tokens,) int32; learned: (tokens,) bool, True with a loss.

    `asked` are the first token of the question and the one after its last, (0, 0) without one.
    """

    ids: NDArray[np.int32]
    learned: Flags
    cut: bool = False
    asked: tuple[int, int] = (0, 0)
    remarks: int = 0
    """The `answers.Remark`s about the text."""

    def __len__(self) -> int:
        return len(self.ids)

    def within(self, longest: int) -> "Tokens":
        """Return the text cut to its first tokens."""
        cut = len(self) > longest
        return replace(self, ids=self.ids[:longest], learned=self.learned[:longest], cut=cut)


@dataclass
class Encoded:
    """The usable rows of one table, tokenised and not cut; `problems` are the other rows.

    ids, learned: (tokens of all rows,); row i has the tokens `offsets[i]` to `offsets[i + 1]`.
    A row of a table that becomes several texts takes as many rows here, one after the other, with
    the same number. `blank` marks rows without text to learn from, `special` rows whose own text
    contains special tokens of the base; `asked` and `remarks` are as in `Tokens`.
    """

    ids: NDArray[np.int32]
    learned: Flags
    offsets: Ints
    numbers: Ints
    keys: Keys
    blank: Flags
    special: Flags
    asked: NDArray[np.int32]
    remarks: NDArray[np.uint8]
    files: list[tuple[int, str]] = field(default_factory=lambda: [(0, "")])
    """The first row of each file, and its name."""
    problems: Problems = field(default_factory=Problems)
    noticed: Noticed = field(default_factory=Noticed)
    refusal: tuple[str, str] | None = None
    """The error and the hint for the first row that the base's template cannot render."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def rows(self) -> int:
        """All rows of the table, usable or not."""
        return int(self.begins.sum()) + self.problems.count

    @property
    def begins(self) -> Flags:
        """Where a row of the table begins: (rows,) bool, False for its further texts."""
        begins = np.ones(len(self), dtype=np.bool_)
        begins[1:] = np.diff(self.numbers) != 0
        begins[[start for start, _ in self.files if start < len(self)]] = True
        return begins

    @property
    def lengths(self) -> Ints:
        """Each row's length in tokens: (rows,) int64."""
        lengths: Ints = np.diff(self.offsets)
        return lengths

    def place(self, row: int) -> str:
        """Name a row as in its file: by number, and by file where there are several."""
        file = self.files[bisect_right([start for start, _ in self.files], row) - 1][1]
        return place_of(int(self.numbers[row]), file)

    def learned_within(self, longest: int) -> Ints:
        """Count, for each row, the tokens with loss among its first `longest`: (rows,) int64.

        The very first token is not counted, because nothing predicts it.
        """
        total = np.concatenate([[0], np.cumsum(self.learned, dtype=np.int64)])
        starts = self.offsets[:-1]
        ends = starts + np.minimum(self.lengths, longest)
        after_first = np.minimum(starts + 1, ends)
        counted: Ints = total[ends] - total[after_first]
        return counted


def no_rows() -> Encoded:
    """Return a table without rows."""
    none: Any = partial(np.zeros, 0)
    return Encoded(
        ids=none(np.int32), learned=none(np.bool_), offsets=np.zeros(1, dtype=np.int64),
        numbers=none(np.int64), keys=none(np.uint64), blank=none(np.bool_), special=none(np.bool_),
        asked=np.zeros((0, 2), dtype=np.int32), remarks=none(np.uint8),
    )  # fmt: skip


def join(parts: Sequence[Encoded]) -> Encoded:
    """Return the rows of several tables as one; a single table is returned without a copy."""
    if len(parts) == 1:
        return parts[0]
    joined = no_rows()
    for name in ("ids", "learned", *PER_ROW):
        arrays = [getattr(each, name) for each in (joined, *parts)]
        setattr(joined, name, np.concatenate(arrays))
    joined.offsets = np.cumsum(np.concatenate([joined.offsets, *(each.lengths for each in parts)]))
    first_rows = np.cumsum([0, *map(len, parts)]).tolist()
    files = [(row, part.files[0][1]) for row, part in zip(first_rows, parts, strict=False)]
    joined.files = files or joined.files
    for part in parts:
        joined.problems.extend(part.problems)
        joined.noticed.extend(part.noticed)
        joined.refusal = joined.refusal or part.refusal
    return joined


def in_pieces(encoded: Encoded, longest: int, bos: int | None) -> Encoded:
    """Return the rows with those above `longest` tokens split into pieces of about equal length.

    A row's pieces follow one another with the row's number, and each is an example of its own: it
    has its own key, so that a part of one long text can be held out. Where a row begins with the
    token `bos`, so do its later pieces.
    """
    lengths, starts = encoded.lengths, encoded.offsets[:-1]
    if not (lengths > longest).any():
        return encoded
    first = np.append(encoded.ids, -1)[starts]
    marked = (first == bos) & (lengths > longest)
    counts = np.where(lengths > longest, -(-lengths // np.maximum(longest - marked, 1)), 1)
    row = np.repeat(np.arange(len(encoded)), counts)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = starts[row] + lengths[row] * piece // counts[row]
    added = marked[row] & (piece > 0)
    return replace(
        encoded,
        ids=_with(encoded.ids, begins[added], bos),
        learned=_with(encoded.learned, begins[added], False),
        offsets=np.append(begins + np.cumsum(added) - added, len(encoded.ids) + int(added.sum())),
        numbers=encoded.numbers[row],
        keys=encoded.keys[row] + piece.astype(np.uint64) * KEY_STEP,
        blank=encoded.blank[row],
        special=encoded.special[row],
        asked=np.where((piece == 0)[:, None], encoded.asked[row], 0),
        remarks=encoded.remarks[row],
        files=_moved(encoded.files, np.cumsum(counts) - counts),
    )


KEY_STEP = np.uint64(0x9E3779B97F4A7C15)
"""An odd number far from others, so that keys of pieces, which wrap around, do not meet."""


def _with(values: NDArray[Any], places: Ints, value: Any) -> NDArray[Any]:
    """Insert a value at places; without any, the array is not copied."""
    return np.insert(values, places, value) if len(places) else values


def _moved(files: list[tuple[int, str]], first: Ints) -> list[tuple[int, str]]:
    """Return where files begin; `first`, (rows,), is where each old row begins now."""
    end = int(first[-1]) + 1 if len(first) else 0
    return [(int(first[row]) if row < len(first) else end, name) for row, name in files]


class Documents(Sequence[Tokens]):
    """Some rows of `Encoded`, in order, each cut to the longest example length."""

    def __init__(self, encoded: Encoded, chosen: Ints, longest: int) -> None:
        self._encoded = encoded
        self._chosen = chosen
        self._longest = longest
        self.lengths: Ints = np.minimum(encoded.lengths[chosen], longest)

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Tokens: ...

    @overload
    def __getitem__(self, index: slice) -> "Documents": ...

    def __getitem__(self, index: int | slice) -> "Tokens | Documents":
        if isinstance(index, slice):
            return Documents(self._encoded, self._chosen[index], self._longest)
        row = self._chosen[index]
        begin, end = int(self._encoded.offsets[row]), int(self._encoded.offsets[row + 1])
        kept = min(end, begin + self._longest)
        ids, learned = self._encoded.ids[begin:kept], self._encoded.learned[begin:kept]
        first, last = self._encoded.asked[row].tolist()
        return Tokens(ids, learned, kept < end, (first, last), int(self._encoded.remarks[row]))

    def __iter__(self) -> Iterator[Tokens]:
        return (self[index] for index in range(len(self)))

    def digest(self) -> str:
        """Return a digest of all tokens and of which of them have a loss."""
        found = hashlib.blake2b(digest_size=16)
        encoded = self._encoded
        for row, length in zip(self._chosen.tolist(), self.lengths.tolist(), strict=True):
            begin = int(encoded.offsets[row])
            found.update(encoded.ids[begin : begin + length].tobytes())
            found.update(encoded.learned[begin : begin + length].tobytes())
        return found.hexdigest()

    def has_remark(self, remark: int) -> bool:
        """Tell whether any of the texts has a remark."""
        return bool((self._encoded.remarks[self._chosen] & remark).any())


def lengths_of(documents: Sequence[Tokens]) -> list[int]:
    """Return each document's length in tokens, without creating the documents."""
    if isinstance(documents, Documents):
        lengths: list[int] = documents.lengths.tolist()
        return lengths
    return [len(document) for document in documents]
