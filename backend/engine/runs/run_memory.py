"""The memory that a run takes: measured from its start, and kept near the prediction."""

from collections.abc import Callable
from itertools import count

from backend.engine.core import memory
from backend.engine.session import Session
from backend.engine.steps import few_lengths
from backend.engine.steps.packing import Packs
from backend.requests import Train


class RunMemory:
    """The memory of one segment of a run, in bytes.

    Memory still held from an earlier run in the same precision (freed blocks, and kernels that
    oneDNN compiled for bf16) is used again by this run, so it counts as this run's memory.
    Otherwise a second run would seem to take almost nothing.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._device = session.base.device
        self._at_start = memory.resident(self._device)
        self.expect("fp32")
        self.free = memory.available(self._device)
        memory.reset_peak(self._device)

    def expect(self, precision: str) -> None:
        """Set the compute precision of the run's steps."""
        self._precision = precision
        self._before = self._at_start - self._session.held_by_earlier_runs.get(precision, 0)

    @property
    def peak(self) -> int:
        """The highest use in bytes since the start."""
        return max(memory.peak(self._device) - self._before, 0)

    def between_steps(self, packs: Packs, train: Train, done: int) -> Callable[[], None]:
        """Return what to call after each step, of which `done` are done already.

        oneTBB keeps freed blocks by size, so a step with packs of other lengths cannot use those of
        the step before: a run would hold twice what a step needs. They are joined before such a
        step. Joining them after every step would cost 3 % of the speed.
        """
        numbers = count(done)
        rounded = few_lengths.rounds(self._device, self._precision)

        def shapes(step: int) -> set[tuple[int, int]]:
            first = step * train.accumulation
            last = min(first + train.accumulation, len(packs))
            return {packs.shape(index, rounded=rounded) for index in range(first, last)}

        def tidy() -> None:
            step = next(numbers)
            if not shapes(step + 1) <= shapes(step):
                self.tidy()

        return tidy

    def tidy(self) -> None:
        """Join freed blocks."""
        memory.join_freed(self._device)

    def close(self) -> None:
        """Remember how much memory stays held; a later run uses almost all of it again."""
        if self._device.type == "cpu":
            memory.release(self._device)
            held = memory.resident(self._device) - self._before
            self._session.held_by_earlier_runs[self._precision] = max(held, 0)
