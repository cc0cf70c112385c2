"""What learning comes to: a run before, while and after it goes on, and its data."""

import math
from typing import Literal

from pydantic import Field

from backend.results.base import Problem, Result

MOST_NATS = 700.0
"""exp of more is no float any more."""
RunState = Literal["queued", "running", "finished", "stopped", "failed", "interrupted", "damaged"]
"""A run is damaged where a file in its folder cannot be read; nobody writes that state down."""


class RowProblem(Result):
    """Something wrong with one row of the data; rows count from 1, as in an editor."""

    row: int
    what: str
    value: str = ""
    """The value that is wrong, shortened."""
    file: str = ""
    """The row's file, where the data is a folder of them."""

    @property
    def place(self) -> str:
        return place_of(self.row, self.file)


def place_of(row: int, file: str = "") -> str:
    """Name a row as a person finds it."""
    return f"{file}, row {row}" if file else f"row {row}"


RowKind = Literal["bad", "empty", "nothing", "cut", "duplicate", "both", "special"]


class RowGroup(Result):
    """Rows of which one thing is to be said, and where the first of them are."""

    kind: RowKind
    count: int
    places: tuple[str, ...]


class LengthBin(Result):
    """Examples of `low` to `high` tokens, both included."""

    low: int
    high: int
    examples: int


class DataStats(Result):
    """What becomes of a data set once it is tokenised."""

    shape: str
    shape_reason: str
    rows: int
    held_out_rows: int = 0
    """How many of the rows are of held-out data of its own."""
    examples: int
    held_out: int
    tokens: int
    learned_tokens: int
    longest: int
    median: int
    cut: int
    dropped: int
    bad: int = 0
    """Rows that cannot be used and were left out, as asked."""
    overlap: int = 0
    """Rows that are held out, too, and therefore not learned."""
    groups: tuple[RowGroup, ...] = ()
    histogram: tuple[LengthBin, ...] = ()
    """Lengths of all usable examples before they are cut."""


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
    disk_bytes: int = 0
    """What checkpoints, adapter and events take at their peak."""
    disk_free_bytes: int = 0
    changed_settings: int = 0
    """How many settings differ from their defaults; name and data do not count."""
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
    row: int = 0
    left_out: str = ""
    """Why nothing is learned from it; empty where something is."""


class DataPreview(Result):
    """The first examples of a data set and what is wrong with it."""

    rows: int
    problems: list[RowProblem]
    stats: DataStats | None
    examples: list[Example]
    bad: int = 0
    """How many rows cannot be used; `problems` names the first of them."""
    shape: str = ""
    """What the rows are; empty where somebody has to say which column is what."""
    shape_reason: str = ""
    columns: tuple[str, ...] = ()
    quick: bool = True
    """Whether checking every row is quick: the data is small, or was tokenised before."""


class PreparedData(Result):
    """A data set that lies tokenised on the disk."""

    rows: int
    bad: int
    tokens: int
    seconds: float


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

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the model chooses: exp of the loss."""
        return math.exp(min(self.loss, MOST_NATS))


class Sample(Result):
    """A held-out example answered at the end of a run, beside the answer that it has."""

    prompt: str
    reference: str
    base: str
    adapter: str


class RunResult(Result):
    """What a training run came to."""

    run_id: str
    adapter: str
    state: RunState
    steps: int
    adapter_step: int = 0
    """The step whose state the adapter is: the last, or the best."""
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


class QueuedRun(Result):
    """A training that waits its turn; `waits_for` names what else is missing."""

    id: str
    name: str
    data: str
    method: str
    rank: int
    added: float
    waits_for: str = ""


class ExportedRun(Result):
    """A run that was written into a folder; `notes` say what could not be part of it."""

    path: str
    files: list[str]
    bytes: int
    notes: list[str]


class RunCommands(Result):
    """How a run is repeated from the command line."""

    base: str
    """Loads the base that the run was on."""
    fields: str
    """The run with its settings as options."""
    file: str
    """The run from the request in its folder; the same."""
    note: str


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
    adapter_id: str
    state: RunState
    paused: bool = False
    """Whether it holds still until somebody lets it go on."""
    colour: str
    data: str
    base_name: str
    quantization: str = "none"
    precision: str = ""
    """What its steps computed in; empty before that is known."""
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
    kept_step: int = 0
    """The step whose state the adapter is, and whose held-out figures these are; 0: the last."""
    tokens_per_second: float | None = None
    seconds: float = 0.0
    predicted_seconds: float | None = None
    """Training time as predicted after the first steps."""
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
    not_extendable: str = ""
    """Why it cannot go on by more epochs, though it is finished."""
    note: str = ""
    """What somebody wrote about it."""
