"""The hot-swap slot: what preparing it cost, what a swap took, and what is in it."""

from backend.results.base import Result


class SwapTimes(Result):
    """Ways to change the adapter on this machine, each up to the next answer's first token.

    `switch` is PEFT's own switch without compiled code, `reload` reads the adapter from disk again,
    `recompile` is what a compiled model takes that was not prepared: the first compilation as it
    was measured here (None without one; less where an earlier preparation left its compiled code).
    """

    hotswap_seconds: float
    switch_seconds: float
    reload_seconds: float
    recompile_seconds: float | None
    check_seconds: float | None = None
    """What comparing with the reference adds to a hot-swap; not in `hotswap_seconds`."""


class SlotStatus(Result):
    """The prepared slot as it is now; `current` is empty while the base alone answers."""

    adapters: list[str]
    current: str
    rank: int
    compiled: bool
    compile_seconds: float
    prepared: float = 0.0
    """When it was prepared, in seconds since 1970: tells one slot from the next."""
    memory_bytes: int = 0
    """What the slot and its adapters' padded weights take."""
    note: str = ""
    recompilations: int = 0
    """Graphs compiled since the slot was ready."""
    times: SwapTimes | None = None
    tokens_per_second_eager: float | None = None
    tokens_per_second_compiled: float | None = None
    last_swap_seconds: float | None = None
    last_difference: float | None = None
    """Of the last swap: how far its log-probabilities were from the adapter's reference."""


class PreparedSlot(Result):
    """A slot that is ready.

    `references[adapter]` is the total natural-log probability of the reference text, computed
    eagerly before anything was compiled. `tokens_per_second_eager` is the speed of the session as
    it was, with the adapter on by PEFT.
    """

    adapters: list[str]
    rank: int
    layers: int
    compiled: bool
    compile_seconds: float
    memory_bytes: int
    references: dict[str, float]
    graphs: int
    tokens_per_second_eager: float | None
    tokens_per_second_compiled: float | None
    notes: list[str]
    times: SwapTimes | None = None


class Swapped(Result):
    """A swap. `max_difference` is of log-probabilities, against the adapter's own reference."""

    adapter: str
    seconds: float
    recompilations: int
    max_difference: float


class SlotLeft(Result):
    """The session after the slot was left.

    `max_difference` is of log-probabilities of the active set, before the slot and after it.
    """

    active: list[tuple[str, float]]
    max_difference: float
