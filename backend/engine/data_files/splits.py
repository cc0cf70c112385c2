"""Which parts of a source are for training and which are held out, by their names alone.

The names are those by which `datasets` finds splits: whole words in the name of a file or folder.
"""

import re
from itertools import islice
from typing import NamedTuple

from backend.errors import DataError

TRAIN, VALIDATION, TEST = "training", "validation", "test"
WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval", "evaluation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
SHARD = re.compile(r"(.*?)(\d{5})-of-(\d{5})(.*)")
"""One of the parts into which a data set was split: its number, from 0, and how many there are."""
NAMED = 3
"""So many names are listed in a note."""


class Chosen(NamedTuple):
    """The names of the parts for training, of those held out, and what a user should know."""

    training: list[str]
    held_out: list[str]
    notes: tuple[str, ...] = ()


def split_of(name: str) -> str:
    """Return the split that a path belongs to: by its last part that names one and only one."""
    for part in reversed(name.split("/")):
        found = {WORDS[word] for word in re.findall(r"[a-z]+", part.lower()) if word in WORDS}
        if found:
            return found.pop() if len(found) == 1 else ""
    return ""


def choose(names: list[str], source: str) -> Chosen:
    """Sort the parts of a source; raises DataError where none is for training.

    The validation parts are held out, or else the test parts. Where no part is named for training,
    those without a split's name are.
    """
    found = {
        split: [n for n in names if split_of(n) == split] for split in (TRAIN, VALIDATION, TEST)
    }
    unnamed = [name for name in names if not split_of(name)]
    training = found[TRAIN] or unnamed
    kinds = [split for split in (VALIDATION, TEST) if found[split]]
    if not training:
        if len(kinds) == 1:
            what = f"{source} has only {kinds[0]} data: it is used for training."
            return Chosen(names, [], (what, *_mixed(names, source), *_missing(names, source)))
        raise DataError(
            f"{source} has parts for validation and for a test, but none for training.",
            cure="Choose the file that you want to train on.",
        )
    held_out = found[VALIDATION] or found[TEST]
    notes = [*_mixed(training, source), *_missing(names, source)]
    if held_out:
        kind = VALIDATION if found[VALIDATION] else TEST
        notes.append(f"Held out is the {kind} part of {source}: {listed(held_out)}.")
    if found[VALIDATION] and found[TEST]:
        notes.append(
            f"The test part of {source} is not used, so that it is new at the end: "
            f"{listed(found[TEST])}."
        )
    if found[TRAIN] and unnamed:
        notes.append(f"Left out of {source}, as their names are of no split: {listed(unnamed)}.")
    return Chosen(training, held_out, tuple(notes))


def listed(names: list[str]) -> str:
    """Return the first of some names as text, and how many more there are."""
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED:,} more"


def _mixed(training: list[str], source: str) -> list[str]:
    """Say which parts are the training data where there are several, and of how many sets."""
    if len(training) < 2:
        return []
    notes = [f"The training data of {source}: {listed(training)}."]
    sets = [*dict.fromkeys(map(_set_of, training))]
    if len(sets) > 1:
        named = listed([each or source for each in sets])
        notes.append(
            f"{source} has several data sets, whose rows are mixed: {named}. "
            "To train on one alone, choose its folder or its files."
        )
    return notes


def _set_of(name: str) -> str:
    """Return what names no split in the path of a part: a configuration, on the Hub."""
    *folders, own = name.split("/")
    shard = SHARD.fullmatch(own)
    words = re.findall(r"[a-z]+", shard[1].lower()) if shard else []
    own_set = "_".join(word for word in words if word not in WORDS)
    return "/".join([*(part for part in folders if not split_of(part)), *filter(None, [own_set])])


def _missing(names: list[str], source: str) -> list[str]:
    """Say which of the parts are not there that the names of the others tell of."""
    there: dict[tuple[str, ...], set[int]] = {}
    for shard in filter(None, map(SHARD.fullmatch, names)):
        start, number, count, end = shard.groups()
        there.setdefault((start, count, end), set()).add(int(number))
    notes = []
    for (start, count, end), numbers in there.items():
        gone = (each for each in range(int(count)) if each not in numbers)
        first = [f"{start}{each:05}-of-{count}{end}" for each in islice(gone, NAMED)]
        if first:
            more = int(count) - sum(each < int(count) for each in numbers) - len(first)
            shown = ", ".join(first) + (f" and {more:,} more" if more else "")
            notes.append(f"Parts of {source} are missing, so their rows are not used: {shown}.")
    return notes
