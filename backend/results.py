"""The outcome of every operation and the state of the session, as immutable data.

Bytes and seconds everywhere; rounding for people is the screen's business.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Phase = Literal[
    "empty",
    "loading",
    "ready",
    "training",
    "paused",
    "combining",
    "merging",
    "swapping",
    "chatting",
    "down",
]
RunState = Literal["queued", "running", "finished", "stopped", "failed", "interrupted"]


class Result(BaseModel):
    """Base of all results."""

    model_config = ConfigDict(frozen=True)


class ModelFacts(Result):
    """What is known about the loaded base model."""

    name: str
    source: str
    path: str
    architecture: str
    parameters: int
    layers: int
    hidden_size: int
    vocabulary: int
    context_length: int
    precision: str
    precision_reason: str
    device: str
    tied_embeddings: bool
    chat_template: bool
    memory_predicted_bytes: int
    memory_measured_bytes: int
    fingerprint: str
    seconds: float


class Problem(Result):
    """Something that keeps an operation from starting, and the way out."""

    what: str
    cure: str = ""


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
    matched_modules: list[str]
    trainable_parameters: int
    total_parameters: int
    stats: DataStats | None
    steps: int
    memory_bytes: int
    memory_available_bytes: int
    seconds: float | None
    seconds_from: str


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


class SavedAdapter(Result):
    """A copy of an adapter on disk. `max_difference`: of log-probabilities, read back and live."""

    path: str
    fingerprint: str
    tensors: int
    bytes: int
    max_difference: float


class ActiveSet(Result):
    """Which adapters answer now."""

    adapters: list[tuple[str, float]]
    seconds: float


class Answers(Result):
    """`answers[variant][prompt]`."""

    answers: list[list[str]]


class Scores(Result):
    """`scores[variant][text]`: total natural-log probability of the tokens after the first."""

    scores: list[list[float]]
    tokens: list[int]


class Answer(Result):
    """One streamed answer, once it is whole."""

    text: str
    tokens: int
    seconds: float


class Unloaded(Result):
    """What letting the base go gave back."""

    freed_bytes: int


class AdapterInfo(Result):
    """One adapter of the library, as its side-car file says.

    `max_difference`: of log-probabilities, between the live adapter and its file read back.
    """

    id: str
    name: str
    colour: str
    method: str
    rank: int
    parameters: int
    base_name: str
    base_fingerprint: str
    created: float
    run_id: str | None = None
    data: str = ""
    state: str = "finished"
    steps: int = 0
    evaluation_before: Evaluation | None = None
    evaluation: Evaluation | None = None
    max_difference: float | None = None


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
    resumable: bool = False


class JobInfo(Result):
    """The model job that is running now."""

    id: int
    title: str
    operation: str
    run_id: str | None
    text: str
    fraction: float | None
    seconds_left: float | None
    stopping: bool


class Notice(Result):
    """Something the person should know although they did not ask: shown until the next one."""

    kind: Literal["info", "good", "bad"]
    text: str
    time: float


class Snapshot(Result):
    """Everything a screen needs, in one consistent piece. Equal versions are equal snapshots."""

    version: int
    phase: Phase
    base: ModelFacts | None
    active: list[tuple[str, float]]
    adapters: list[AdapterInfo]
    runs: list[RunSummary]
    job: JobInfo | None
    notice: Notice | None
    memory_bytes: int
    memory_total_bytes: int
