"""Which adapter of a folder, a zip or a repository is meant: what trainings leave holds several.

The Trainer keeps `checkpoint-*/` below the adapter that it ends with. The one at the top is taken;
of checkpoints alone, the newest. Knows only paths, and opens no file.
"""

import re
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple

from backend.engine.methods.config_validation import CONFIG, shown
from backend.engine.methods.peft_io import WEIGHTS
from backend.errors import ModelError, NotFound

MLX_WEIGHTS = "adapters.safetensors"
SHOWN_CHOICES = 20
"""At most as many others are named; a long training keeps hundreds."""
OF_THE_SYSTEM = ("__MACOSX",)
DEEPEST = 32
"""Folders of one path: comparing those of a path with thousands would take minutes."""
_HOLDS_WEIGHTS = (WEIGHTS, MLX_WEIGHTS, "adapter_model.bin", "adapters.npz")
_NUMBERED = re.compile(r"(?:checkpoint|ckpt|epoch|step|iter)[-_]?0*(\d{1,18})", re.IGNORECASE)
_STATE = re.compile(r"\d{1,18}_adapters\.safetensors")
_TOP = PurePosixPath(".")


class Choice(NamedTuple):
    """The folder of the chosen adapter, the folders of the others, and a sentence about both."""

    home: PurePosixPath
    others: tuple[PurePosixPath, ...] = ()
    note: str = ""


class SeveralAdapters(ModelError):
    """Several adapters of which none is above the others; `homes` are their folders."""

    def __init__(self, name: str, homes: tuple[PurePosixPath, ...]) -> None:
        is_zip = name.lower().endswith(".zip")
        one = ", so it is not the zip of one adapter" if is_zip else ""
        super().__init__(
            f"{name} contains {len(homes)} {CONFIG}{one}.",
            cure=f"Make a zip of one adapter's folder, or add its name: {listed(homes)}."
            if is_zip
            else f"Add the name of one adapter's folder: {listed(homes)}.",
        )
        self.homes = homes

    def to_dict(self) -> dict[str, str]:
        """Return the error as the kind that the service knows."""
        return {**super().to_dict(), "kind": ModelError.__name__}


def choose(files: Iterable[PurePosixPath], name: str, *, asked: str = "") -> Choice:
    """Return the adapter that is meant among these files; raises ModelError or NotFound.

    `asked` is the folder that a person named. Folders that a system adds are not looked at.
    """
    files = list(files)
    homes, complete = _homes(files)
    if asked:
        homes = _asked_for(homes, PurePosixPath(asked))
    if not homes:
        raise _none(name, asked)
    tops = _tops(homes)
    if len(tops) == 1 and tops[0] not in complete:
        # a training that was killed has whole checkpoints only
        homes = [home for home in homes if home in complete] or homes
        tops = _tops(homes)
    if len(tops) == 1:
        choice = _chosen(tops[0], homes, "the one at the top was taken")
        return choice._replace(note=" ".join(filter(None, (choice.note, _earlier(files, tops[0])))))
    numbers = _numbers(tops)
    if numbers is not None:
        newest = max(tops, key=lambda home: numbers[home])
        return _chosen(newest, homes, f"the newest one, {shown(newest, 80)}, was taken")
    raise SeveralAdapters(name, tuple(tops))


def listed(homes: Collection[PurePosixPath]) -> str:
    """Return the names of the first folders, and how many more there are."""
    names = [shown(home, 80) for home in islice(homes, SHOWN_CHOICES)]
    more = f" and {len(homes) - SHOWN_CHOICES} more" if len(homes) > SHOWN_CHOICES else ""
    return ", ".join(names) + more


def is_of_the_system(path: PurePosixPath) -> bool:
    """Return whether a file was added by a system or is hidden: `__MACOSX`, `.DS_Store`."""
    return any(part in OF_THE_SYSTEM or part.startswith(".") for part in path.parts)


def _homes(
    files: Iterable[PurePosixPath],
) -> tuple[list[PurePosixPath], set[PurePosixPath]]:
    """Return the folders with a configuration, in order, and which of them have weights."""
    seen = [file for file in files if len(file.parts) <= DEEPEST and not is_of_the_system(file)]
    configured = {file.parent for file in seen if file.name == CONFIG}
    weighted = {file.parent for file in seen if file.name in _HOLDS_WEIGHTS}
    return sorted(configured, key=_in_order), configured & weighted


def _tops(homes: list[PurePosixPath]) -> list[PurePosixPath]:
    """Return the folders that are in no other one."""
    known = set(homes)
    return [home for home in homes if not any(parent in known for parent in _above(home))]


def _in_order(home: PurePosixPath) -> tuple[int, str, int, str]:
    """Sort by depth and parent, and checkpoints by their number."""
    number = _NUMBERED.fullmatch(home.name)
    return len(home.parts), str(home.parent), int(number[1]) if number else -1, home.name


def _chosen(home: PurePosixPath, homes: list[PurePosixPath], why: str) -> Choice:
    others = tuple(each for each in homes if each != home)
    if not others:
        return Choice(home)
    count = f"{len(others) + 1} adapters"
    return Choice(home, others, f"It holds {count}; {why}. The others are {listed(others)}.")


def _earlier(files: list[PurePosixPath], home: PurePosixPath) -> str:
    """Return a sentence about the states that mlx-lm keeps beside the weights of the last step."""
    kept = [file for file in files if file.parent == home and _STATE.fullmatch(file.name)]
    return f"Earlier states beside it were left out: {listed(kept)}." if kept else ""


def _numbers(tops: list[PurePosixPath]) -> dict[PurePosixPath, int] | None:
    """Return the steps of checkpoints of one training; None where one is something else."""
    found = {home: _NUMBERED.fullmatch(home.name) for home in tops}
    if len({home.parent for home in tops}) != 1 or not all(found.values()):
        return None
    kinds = {re.sub(r"[-_]?\d+$", "", home.name).lower() for home in tops}
    numbers = {home: int(match[1]) for home, match in found.items() if match}
    return numbers if len(kinds) == 1 and len(set(numbers.values())) == len(tops) else None


def _above(home: PurePosixPath) -> list[PurePosixPath]:
    return [] if home == _TOP else list(home.parents)


def _asked_for(homes: list[PurePosixPath], asked: PurePosixPath) -> list[PurePosixPath]:
    """Return the adapters in a folder; `checkpoint-20` also finds `output/checkpoint-20`."""
    inside = [home for home in homes if home == asked or asked in home.parents]
    return inside or [home for home in homes if home.parts[-len(asked.parts) :] == asked.parts]


def _none(name: str, asked: str) -> ModelError | NotFound:
    if asked:
        return NotFound(
            f"{name} has no adapter in {shown(asked, 80)!r}.", cure="Check the folder's name."
        )
    if name.lower().endswith(".zip"):
        return ModelError(
            f"{name} contains no {CONFIG}, so it is not the zip of one adapter.",
            cure="Make a zip of one adapter's folder.",
        )
    return ModelError(f"{name} has no {CONFIG}, so it is not an adapter.")
