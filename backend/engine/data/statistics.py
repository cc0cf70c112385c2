"""Statistics of a tokenised data set: rows that are cut, empty or duplicate, and their lengths.

Knows nothing of packs or training."""

from collections.abc import Iterable

import numpy as np

from backend.engine.data import placeholders
from backend.engine.data.dataset import DataSet, Learning, Noticed
from backend.engine.data.row_formats import Shape
from backend.engine.data.token_arrays import Encoded, Flags, Ints
from backend.engine.templates.answers import Remark
from backend.results import ColumnUse, DataStats, LengthBin, Placeholder, RowGroup, RowKind

SHOWN_PLACES = 10
BINS = 16
MOST, FAR = 0.95, 3
"""Lengths beyond `FAR` times that of the first `MOST` share one bin, so that the others stay
visible."""
NO_GROUP = RowGroup(kind="pieces", count=0, places=())
REMARKS: dict[RowKind, Remark] = {
    "split": Remark.SPLIT,
    "taught_end": Remark.TAUGHT_END,
    "no_thought": Remark.NO_THOUGHT,
    "not_shown": Remark.NOT_SHOWN,
    "other_prompt": Remark.OTHER_PROMPT,
}


def stats_of(
    data: DataSet,
    main: Encoded,
    apart: Encoded,
    *,
    whole: tuple[Encoded, Encoded],
    learned: Ints,
    longest: int,
) -> DataStats:
    """Describe a tokenised data set; the caller fills in the sizes of what is kept.

    `whole` are the tables before long examples were split into pieces.
    """
    looks = [_Look(main, longest), _Look(apart, longest)]
    noticed = join_noticed(main, apart)
    both = np.isin(main.keys, apart.keys)
    groups = [
        _bad(main, apart),
        _group("empty", looks, [look.blank for look in looks]),
        _group("nothing", looks, [look.nothing for look in looks]),
        _group("cut", looks, [look.cut for look in looks]),
        _pieces(whole, longest) if data.splits else NO_GROUP,
        _group("duplicate", looks, [look.double for look in looks]),
        _group("both", looks[:1], [both]),
        _group("special", looks, [look.encoded.special for look in looks]),
        *(
            _group(kind, looks, [look.with_remark(remark) for look in looks])
            for kind, remark in REMARKS.items()
        ),
    ]
    found = {group.kind: group.count for group in groups}
    kept = learned[looks[0].usable[learned]]
    return DataStats(
        shape=data.shape,
        shape_reason=data.shape_reason,
        notes=data.notes,
        rows=main.rows + apart.rows,
        held_out_rows=apart.rows,
        examples=0,
        held_out=0,
        tokens=0,
        learned_tokens=int(_learned_tokens(main, kept, longest)),
        longest=0,
        median=0,
        cut=found["cut"],
        lost_share=_lost_share(looks, longest),
        dropped=found["empty"] + found["nothing"],
        bad=found["bad"],
        overlap=found["both"],
        groups=tuple(group for group in groups if group.count),
        columns=columns_of(data.parts[0].shape, noticed),
        placeholders=open_placeholders(noticed, data.parts[0].learning),
        histogram=histogram(np.concatenate([look.lengths for look in looks])),
    )


def columns_of(shape: Shape, noticed: Noticed) -> tuple[ColumnUse, ...]:
    """Say what each column was read as, and in how many rows it has a value."""
    uses = shape.uses(noticed.columns)
    return tuple(
        ColumnUse(name=name, use=use, rows=noticed.columns[name]) for name, use in uses.items()
    )


def open_placeholders(noticed: Noticed, learning: Learning) -> tuple[Placeholder, ...]:
    """Return the placeholders that stand in several rows and have no text."""
    found = placeholders.recurring(noticed.placeholders, dict(learning.placeholders))
    return tuple(Placeholder(name=name, rows=rows) for name, rows in found.items())


def join_noticed(*parts: Encoded) -> Noticed:
    """Return what was noticed in several tables together."""
    both = Noticed()
    for part in parts:
        both.extend(part.noticed)
    return both


def _lost_share(looks: Iterable["_Look"], longest: int) -> float:
    """Return the share of the tokens with loss that lie beyond the cut."""
    learned = sum(int(look.encoded.learned.sum()) for look in looks)
    beyond = sum(look.beyond(longest) for look in looks)
    return beyond / learned if learned else 0.0


class _Look:
    """One side of a data set (training or held out), row by row."""

    def __init__(self, encoded: Encoded, longest: int) -> None:
        self.encoded = encoded
        self.usable: Flags = encoded.learned_within(longest) > 0
        usable = self.of_rows(self.usable)
        self.blank = encoded.begins & encoded.blank & ~usable
        self.nothing = encoded.begins & ~encoded.blank & ~usable
        self.cut = (encoded.lengths > longest) & self.usable
        self.double = encoded.begins
        self.double[np.unique(encoded.keys, return_index=True)[1]] = False
        self.lengths = encoded.lengths[self.usable]

    def beyond(self, longest: int) -> int:
        """Count the tokens with loss beyond the cut."""
        total = np.concatenate([[0], np.cumsum(self.encoded.learned, dtype=np.int64)])
        starts, ends = self.encoded.offsets[:-1], self.encoded.offsets[1:]
        return int((total[ends] - total[np.minimum(starts + longest, ends)]).sum())

    def with_remark(self, remark: Remark) -> Flags:
        """Return the rows of the table with a remark on any of their texts: (rows,) bool."""
        return self.of_rows(self.encoded.remarks & int(remark) != 0)

    def of_rows(self, texts: Flags) -> Flags:
        """Mark the first text of each row of the table that has any of the texts: (rows,) bool."""
        begins = self.encoded.begins
        row_of = np.cumsum(begins) - 1
        found = np.unique(row_of[texts])
        flags = np.zeros(len(begins), dtype=np.bool_)
        flags[np.flatnonzero(begins)[found]] = True
        return flags


def histogram(lengths: Ints) -> tuple[LengthBin, ...]:
    """Count examples by length, (examples,) in tokens, in equal bins; outliers share the last."""
    if not len(lengths):
        return ()
    low, high = int(lengths.min()), int(lengths.max())
    usual = int(np.quantile(lengths, MOST, method="lower"))
    far = lengths > FAR * usual
    if not far.any():
        return _equal_bins(lengths, low, high, BINS)
    near = lengths[~far]
    bins = _equal_bins(near, low, int(near.max()), BINS - 1)
    return (*bins, LengthBin(low=int(lengths[far].min()), high=high, examples=int(far.sum())))


def _equal_bins(lengths: Ints, low: int, high: int, most: int) -> tuple[LengthBin, ...]:
    width = max(1, -(-(high - low + 1) // most))
    edges = range(low, high + 1, width)
    counts = np.bincount((lengths - low) // width, minlength=len(edges))
    return tuple(
        LengthBin(low=edge, high=min(edge + width - 1, high), examples=int(count))
        for edge, count in zip(edges, counts, strict=True)
    )


def _learned_tokens(main: Encoded, kept: Ints, longest: int) -> int:
    """Count the tokens with loss as in the mask: first tokens too, though nothing predicts them."""
    first = main.learned[main.offsets[:-1][kept]] if len(kept) else np.zeros(0, dtype=bool)
    return int(main.learned_within(longest)[kept].sum() + first.sum())


def _group(kind: RowKind, looks: Iterable[_Look], flags: Iterable[Flags]) -> RowGroup:
    places: list[str] = []
    count = 0
    for look, flag in zip(looks, flags, strict=True):
        count += int(flag.sum())
        places += [look.encoded.place(row) for row in np.flatnonzero(flag)[:SHOWN_PLACES]]
    return RowGroup(kind=kind, count=count, places=tuple(places[:SHOWN_PLACES]))


def _pieces(whole: tuple[Encoded, Encoded], longest: int) -> RowGroup:
    looks = [_Look(table, longest) for table in whole]
    return _group("pieces", looks, [look.of_rows(look.cut) for look in looks])


def _bad(main: Encoded, apart: Encoded) -> RowGroup:
    problems = [*main.problems.first, *apart.problems.first]
    places = tuple(problem.place for problem in problems[:SHOWN_PLACES])
    return RowGroup(kind="bad", count=main.problems.count + apart.problems.count, places=places)
