"""Limits password guesses: growing waits, per address and for all addresses together."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pace:
    """Some free guesses, then a wait that doubles from one second up to `longest_s`."""

    free: int
    longest_s: float
    forgotten_s: float

    def wait_s(self, guesses: int) -> float:
        """Return the wait after this many wrong guesses."""
        if guesses < self.free:
            return 0.0
        return min(2.0 ** min(guesses - self.free, 30), self.longest_s)


BY_ADDRESS = Pace(free=5, longest_s=900, forgotten_s=3600)
# All together: at most 10,000 guesses a day, from any number of addresses.
BY_ALL = Pace(free=50, longest_s=10, forgotten_s=600)
MOST_ADDRESSES = 4096
MOST_KNOWN = 256


@dataclass
class Guesses:
    """Number of wrong guesses, and the time of the last one."""

    count: int = 0
    last: float = 0.0


class GuessLimit:
    """Counts guesses before they are checked, so that parallel guesses gain nothing.

    An address that has signed in before is exempt from the common limit; otherwise others could
    lock the owner out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_address: OrderedDict[str, Guesses] = OrderedDict()
        self._all = Guesses()
        self._known: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_address)

    def admit(self, address: str) -> float:
        """Count a guess and return 0, or return the seconds to wait before the next one."""
        key, now = network_of(address), self._clock()
        own = self._by_address.get(key, Guesses())
        waits = [_wait_s(own, BY_ADDRESS, now)]
        if key not in self._known:
            waits.append(_wait_s(self._all, BY_ALL, now))
        if max(waits) > 0:
            return max(waits)
        self._by_address[key] = _counted(own, BY_ADDRESS, now)
        _bound(self._by_address, key, MOST_ADDRESSES)
        self._all = _counted(self._all, BY_ALL, now)
        return 0.0

    def succeeded(self, address: str) -> None:
        """Reset the wrong guesses of an address after a correct one."""
        key = network_of(address)
        self._by_address.pop(key, None)
        self._all.count = max(self._all.count - 1, 0)
        self._known[key] = None
        _bound(self._known, key, MOST_KNOWN)


def network_of(address: str) -> str:
    """Return what counts as one source: an IPv4 address, or an IPv6 /64 network."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _wait_s(guesses: Guesses, pace: Pace, now: float) -> float:
    return max(guesses.last + pace.wait_s(guesses.count) - now, 0.0)


def _counted(guesses: Guesses, pace: Pace, now: float) -> Guesses:
    is_old = now - guesses.last > pace.forgotten_s
    return Guesses(1 if is_old else guesses.count + 1, now)


def _bound(entries: OrderedDict[str, Any], newest: str, most: int) -> None:
    entries.move_to_end(newest)
    while len(entries) > most:
        entries.popitem(last=False)
