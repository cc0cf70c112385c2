"""Results about the hot-swap slot: its preparation, its swaps, and its current adapter."""

from backend.results.base import Result


class SwapTimes(Result):
    """Seconds of several ways to change the adapter here, up to the next answer's first token.

    `switch` is PEFT's own switch without compiled code. `reload` reads the adapter from disk again.
    `recompile` is for a compiled model without a prepared slot: the first compilation measured here
    (None without one; less if an earlier preparation left its compiled code).
    """

    hotswap_seconds: float
    switch_seconds: float
    reload_seconds: float
    recompile_seconds: float | None
    check_seconds: float | None = None
    """What comparing with the reference adds to a hot-swap; not in `hotswap_seconds`."""


class SlotStatus(Result):
    """The current state of the slot; `current` is empty if the base alone answers."""

    adapters: list[str]
    current: str
    rank: int
    compiled: bool
    compile_seconds: float
    prepared: float = 0.0
    """When it was prepared, in seconds since 1970; this identifies the slot."""
    memory_bytes: int = 0
    """Memory of the slot and its adapters' padded weights."""
    note: str = ""
    recompilations: int = 0
    """Number of graphs compiled since the slot was ready."""
    times: SwapTimes | None = None
    tokens_per_second_eager: float | None = None
    tokens_per_second_compiled: float | None = None
    last_swap_seconds: float | None = None
    last_difference: float | None = None
    """Difference of log-probabilities between the last swap and the adapter's reference."""


class PreparedSlot(Result):
    """A slot that is ready.

    `references[adapter]` is the total natural-log probability of the reference text, computed
    eagerly before anything was compiled. `tokens_per_second_eager` is the speed before the slot was
    prepared, with the adapter switched on by PEFT.
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
    """A swap. `max_difference` is of log-probabilities, to the adapter's own reference."""

    adapter: str
    seconds: float
    recompilations: int
    max_difference: float


class SlotLeft(Result):
    """The session after the slot was left.

    `max_difference` is of log-probabilities of the active adapters, before and after the slot.
    """

    active: list[tuple[str, float]]
    max_difference: float
