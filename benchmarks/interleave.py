"""Two sides measured in turns, so that a machine's moods fall on both."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Side = TypeVar("Side")


@dataclass(frozen=True)
class Pairs(Generic[Side]):
    """What the two sides gave, pair by pair."""

    ours: list[Side]
    peer: list[Side]

    def ratios(self, value: Callable[[Side], float]) -> "Spread":
        """Return ours / peer of a value, pair by pair."""
        both = zip(self.ours, self.peer, strict=True)
        return Spread([value(ours) / value(peer) for ours, peer in both])


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __format__(self, spec: str) -> str:
        low, high = min(self.values), max(self.values)
        return f"{self.median:{spec}} ({low:{spec}} to {high:{spec}}, n={len(self.values)})"


def interleaved(ours: Callable[[], Side], peer: Callable[[], Side], *, pairs: int) -> Pairs[Side]:
    """Measure both sides in turns; who goes first changes from pair to pair."""
    found: Pairs[Side] = Pairs([], [])
    for number in range(pairs):
        if number % 2 == 0:
            found.ours.append(ours())
            found.peer.append(peer())
        else:
            found.peer.append(peer())
            found.ours.append(ours())
    return found


def in_turns(sides: dict[str, Callable[[], Side]], *, rounds: int) -> dict[str, list[Side]]:
    """Measure any number of sides in turns; who goes first changes from round to round."""
    found: dict[str, list[Side]] = {name: [] for name in sides}
    names = list(sides)
    for _ in range(rounds):
        for name in names:
            found[name].append(sides[name]())
        names = [*names[1:], names[0]]
    return found
