"""The memory that a run takes: measured from its start, and kept near the prediction."""

from backend.engine.core import memory
from backend.engine.session import Session

TIDY_AT = 0.8
"""Share of the prediction above which freed blocks are joined between two steps. oneTBB keeps freed
blocks by size, and packs differ in length: on a small model the unused blocks grew to twice what a
step needs. A large model can use its blocks again, and joining them after every step would cost 3 %
of its speed."""


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
        self.expect(0, "fp32")
        self.free = memory.available(self._device)
        memory.reset_peak(self._device)

    def expect(self, predicted: int, precision: str) -> None:
        """Set the predicted bytes of the run and the compute precision of its steps."""
        self._predicted, self._precision = predicted, precision
        self._before = self._at_start - self._session.held_by_earlier_runs.get(precision, 0)

    @property
    def peak(self) -> int:
        """The highest use in bytes since the start."""
        return max(memory.peak(self._device) - self._before, 0)

    def tidy(self) -> None:
        """Join freed blocks where more memory is held than the run needs between two steps."""
        if memory.resident(self._device) - self._before > TIDY_AT * self._predicted:
            memory.join_freed(self._device)

    def close(self) -> None:
        """Remember how much memory stays held; a later run uses almost all of it again."""
        if self._device.type == "cpu":
            memory.release(self._device)
            held = memory.resident(self._device) - self._before
            self._session.held_by_earlier_runs[self._precision] = max(held, 0)
