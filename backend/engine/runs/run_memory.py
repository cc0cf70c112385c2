"""What a run takes of the memory: measured from its start, and kept near what was predicted."""

from backend.engine.core import memory
from backend.engine.session import Session

TIDY_AT = 0.8
"""Share of the prediction from which freed blocks are joined between two steps. oneTBB keeps them
by size, and packs differ in length: on a small model what waits grew to twice a step's need. A
large model's blocks fit again, and joining them after every step would cost it 3 % of its speed."""


class RunMemory:
    """The memory of one segment of a run, in bytes.

    What is still held of an earlier run in the same precision, freed blocks and kernels that oneDNN
    compiled for bf16, is used again by this one, so it counts as this one's: else a second run
    would seem to take next to nothing.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._device = session.base.device
        self._at_start = memory.resident(self._device)
        self.expect(0, "fp32")
        self.free = memory.available(self._device)
        memory.reset_peak(self._device)

    def expect(self, predicted: int, precision: str) -> None:
        """Say what the run should take, and what its steps compute in."""
        self._predicted, self._precision = predicted, precision
        self._before = self._at_start - self._session.held_by_earlier_runs.get(precision, 0)

    @property
    def peak(self) -> int:
        """The most that was taken since the start."""
        return max(memory.peak(self._device) - self._before, 0)

    def tidy(self) -> None:
        """Join freed blocks, where more is taken than the run should need between two steps."""
        if memory.resident(self._device) - self._before > TIDY_AT * self._predicted:
            memory.join_freed(self._device)

    def close(self) -> None:
        """Note what stays behind: next to all of it is held for a later run."""
        if self._device.type == "cpu":
            memory.release(self._device)
            held = memory.resident(self._device) - self._before
            self._session.held_by_earlier_runs[self._precision] = max(held, 0)
