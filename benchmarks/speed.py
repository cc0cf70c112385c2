"""How fast a training went, told the same way for every side: unpadded tokens a second."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """One training. `steps`: over the time inside the steps, as `RunResult.tokens_per_second`.

    `wall`: by the clock on the wall, from the end of the first step to the end of the last, with
    everything that happens between steps. `peak_bytes`: of GPU memory with the model's own, 0 where
    it was not measured.
    """

    steps: float
    wall: float
    count: int
    first_loss: float
    last_loss: float
    precision: str
    peak_bytes: int = 0


@dataclass
class StepLog:
    """What a hand-written loop notes after each step."""

    precision: str
    tokens: list[int]
    seconds: list[float]
    ended: list[float]
    losses: list[float]

    @classmethod
    def empty(cls, precision: str) -> "StepLog":
        return cls(precision, [], [], [], [])

    def speed(self) -> Speed:
        """Sum the steps up; a batch that Trainer fetched ahead after the last step is none."""
        tokens = self.tokens[: len(self.seconds)]
        return Speed(
            steps=sum(tokens) / sum(self.seconds),
            wall=by_the_wall(tokens, self.ended),
            count=len(tokens),
            first_loss=self.losses[0] if self.losses else float("nan"),
            last_loss=self.losses[-1] if self.losses else float("nan"),
            precision=self.precision,
        )


def by_the_wall(tokens: Sequence[int], ended: Sequence[float]) -> float:
    """Return tokens a second from the end of the first step to the end of the last."""
    return sum(tokens[1:]) / (ended[-1] - ended[0])
