"""The hot-swap slot: what preparing it cost, what a swap took, and what is in it."""

from backend.results.base import Result


class SlotStatus(Result):
    """The prepared slot as it is now; `current` is empty while the base alone answers."""

    adapters: list[str]
    current: str
    rank: int
    compiled: bool
    compile_seconds: float
    note: str = ""


class PreparedSlot(Result):
    """A slot that is ready.

    `references[adapter]` is the total natural-log probability of the reference text, computed
    eagerly before anything was compiled.
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


class Swapped(Result):
    """A swap. `max_difference` is of log-probabilities, against the adapter's own reference."""

    adapter: str
    seconds: float
    recompilations: int
    max_difference: float


class SlotLeft(Result):
    """The session after the slot was left."""

    active: list[tuple[str, float]]
    max_difference: float
