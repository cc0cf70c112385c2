"""Which parts of a source are for training and which are held out, by their names alone.

The names are those by which `datasets` finds splits: whole words in the name of a file or folder.
"""

import re
from typing import NamedTuple

from backend.errors import DataError

TRAIN, VALIDATION, TEST = "training", "validation", "test"
WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval", "evaluation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
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
            return Chosen(names, [], (what,))
        raise DataError(
            f"{source} has parts for validation and for a test, but none for training.",
            cure="Choose the file that you want to train on.",
        )
    held_out = found[VALIDATION] or found[TEST]
    notes = []
    if held_out:
        kind = VALIDATION if found[VALIDATION] else TEST
        notes.append(f"Held out is the {kind} part of {source}: {_listed(held_out)}.")
    if found[VALIDATION] and found[TEST]:
        notes.append(
            f"The test part of {source} is not used, so that it is new at the end: "
            f"{_listed(found[TEST])}."
        )
    if found[TRAIN] and unnamed:
        notes.append(f"Left out of {source}, as their names are of no split: {_listed(unnamed)}.")
    return Chosen(training, held_out, tuple(notes))


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED:,} more"
