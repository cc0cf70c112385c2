"""Guessing passwords gets slower: from one address, from many, and from all at once."""

import pytest

from ui.serving.guess_limit import BY_ADDRESS, BY_ALL, MOST_ADDRESSES, GuessLimit, network_of


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limit(clock: Clock) -> GuessLimit:
    return GuessLimit(clock)


def guesses_in(limit: GuessLimit, clock: Clock, addresses: list[str], seconds: float) -> int:
    """Guess as fast as is allowed, and return how often that was."""
    end, made = clock.now + seconds, 0
    while clock.now < end:
        waits = [limit.admit(address) for address in addresses]
        made += waits.count(0.0)
        clock.now += max(min(waits), 0.001)
    return made


def test_the_wait_doubles_up_to_the_longest(limit: GuessLimit, clock: Clock) -> None:
    assert [limit.admit("1.2.3.4") for _ in range(5)] == [0.0] * 5
    waits = []
    for _ in range(12):
        waits.append(limit.admit("1.2.3.4"))
        clock.now += waits[-1]
        assert limit.admit("1.2.3.4") == 0.0
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == BY_ADDRESS.longest_s


def test_asking_too_early_does_not_lengthen_the_wait(limit: GuessLimit, clock: Clock) -> None:
    for _ in range(7):
        limit.admit("1.2.3.4")
    first = limit.admit("1.2.3.4")
    clock.now += first / 2
    assert limit.admit("1.2.3.4") == first / 2


def test_a_day_of_guessing_from_one_address_is_little(limit: GuessLimit, clock: Clock) -> None:
    assert guesses_in(limit, clock, ["1.2.3.4"], 24 * 3600) < 120


def test_many_addresses_together_are_held_to_a_pace(limit: GuessLimit, clock: Clock) -> None:
    addresses = [f"10.0.0.{n}" for n in range(100)]
    assert guesses_in(limit, clock, addresses, 1800) < BY_ALL.free + 1800 / BY_ALL.longest_s + 10


def test_other_addresses_do_not_wait_for_one(limit: GuessLimit) -> None:
    for _ in range(6):
        limit.admit("1.2.3.4")
    assert limit.admit("5.6.7.8") == 0.0


def test_signing_in_forgets_the_wrong_guesses(limit: GuessLimit) -> None:
    for _ in range(5):
        limit.admit("1.2.3.4")
    limit.succeeded("1.2.3.4")
    assert limit.admit("1.2.3.4") == 0.0


def test_others_cannot_keep_a_known_address_out(limit: GuessLimit) -> None:
    limit.admit("1.2.3.4")
    limit.succeeded("1.2.3.4")
    for n in range(200):
        limit.admit(f"10.0.0.{n}")
    assert limit.admit("5.6.7.8") > 0
    assert limit.admit("1.2.3.4") == 0.0


def test_wrong_guesses_are_forgotten_in_time(limit: GuessLimit, clock: Clock) -> None:
    for _ in range(6):
        limit.admit("1.2.3.4")
    clock.now += BY_ADDRESS.forgotten_s + 1
    assert [limit.admit("1.2.3.4") for _ in range(5)] == [0.0] * 5


def test_memory_is_bounded(limit: GuessLimit, clock: Clock) -> None:
    for n in range(MOST_ADDRESSES + 500):
        clock.now += BY_ALL.longest_s
        assert limit.admit(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") == 0.0
    assert len(limit) == MOST_ADDRESSES


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown" * 100, ("unknown" * 100)[:64]),
    ],
)
def test_one_guesser_is_an_address_or_an_ipv6_network(address: str, network: str) -> None:
    assert network_of(address) == network
