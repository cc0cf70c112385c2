"""What learning comes to: a run before, while and after it goes on, and its data."""

from typing import Literal

from pydantic import Field

from backend.results.base import Problem, Result

RunState = Literal["queued", "running", "finished", "stopped", "failed", "interrupted"]


class RowProblem(Result):
    """Something wrong with one row of the data; rows count from 1, as in an editor."""

    row: int
    what: str


class DataStats(Result):
    """What becomes of a data set once it is tokenised."""

    shape: str
    shape_reason: str
    rows: int
    examples: int
    held_out: int
    tokens: int
    learned_tokens: int
    longest: int
    median: int
    cut: int
    dropped: int


class PreflightReport(Result):
    """A training run as it would go, before anything is touched."""

    ready: bool
    problems: list[Problem]
    notes: list[str]
    warnings: tuple[Problem, ...] = ()
    """What does not keep the run from starting, but very likely from being of use."""
    matched_modules: list[str]
    trainable_parameters: int
    total_parameters: int
    stats: DataStats | None
    steps: int
    memory_bytes: int
    memory_available_bytes: int
    seconds: float | None
    seconds_from: str
    memory_parts: list[tuple[str, int]] = Field(default_factory=list)
    """The loaded base and what the run adds, by part: weights, adapter, ..., overhead."""
    largest_token_budget: int = 0
    smallest_change: dict[str, int | bool] | None = None
    """Where the run does not fit: the least change of its settings that makes it fit."""


class Example(Result):
    """One example as the model sees it: pieces of text, and whether each is learned."""

    pieces: list[tuple[str, bool]]
    tokens: int
    cut: bool


class DataPreview(Result):
    """The first examples of a data set and what is wrong with it."""

    rows: int
    problems: list[RowProblem]
    stats: DataStats | None
    examples: list[Example]


class Evaluation(Result):
    """How well held-out examples are predicted. Loss is nats per learned token.

    `exact_match` is the share of examples whose every learned token is the likeliest one, which is
    the share that greedy decoding would answer word for word.
    """

    loss: float
    exact_match: float
    token_accuracy: float
    examples: int
    tokens: int


class RunResult(Result):
    """What a training run came to."""

    run_id: str
    adapter: str
    state: RunState
    steps: int
    total_steps: int
    first_loss: float | None
    final_loss: float | None
    tokens_per_second: float
    seconds: float
    peak_memory_bytes: int
    precision: str
    precision_reason: str
    evaluation_before: Evaluation | None
    evaluation: Evaluation | None
    adapter_path: str
    max_difference: float
    predicted_memory_bytes: int = 0
    preparation: str = ""


class Launch(Result):
    """What to type to start a run's processes: once on this machine, or on each of several."""

    run_id: str
    folder: str
    command: str
    machines: int
    each: int
    """Processes on each machine."""


class RunSummary(Result):
    """One run as its folder tells it."""

    id: str
    name: str
    state: RunState
    colour: str
    data: str
    base_name: str
    method: str
    rank: int
    created: float
    begun: float
    """When it was last started or resumed."""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    exact_match: float | None = None
    tokens_per_second: float | None = None
    seconds: float = 0.0
    message: str = ""
    cure: str = ""
    error: str = ""
    peak_memory_bytes: int = 0
    """Measured: the highest use during the run beyond what was in use before it."""
    predicted_memory_bytes: int = 0
    preparation: str = ""
    """What was done to a quantised base for the run, and why."""
    retry: dict[str, int | bool] = Field(default_factory=dict)
    """After running out of memory: the settings that would fit."""
    launched: bool = False
    """Whether it has processes of its own, which listen to its folder."""
    resumable: bool = False
