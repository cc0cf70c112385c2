"""Results about training: a run before, during and after training."""

import math
from typing import Literal

from pydantic import Field

from backend.results.base import Problem, Result
from backend.results.data import DataStats
from backend.results.data_mark import DataMark
from backend.results.training_layout import TrainingLayout

MOST_NATS = 700.0
"""exp of a larger value overflows a float."""
FORGETS = 1.5
"""A perplexity on neutral text that rises to this many times that of the base is a clear loss."""
RunState = Literal["queued", "running", "finished", "stopped", "failed", "interrupted", "damaged"]
"""A run is damaged if a file in its folder cannot be read; that state is never stored."""


class Proposal(Result):
    """Settings that suit a base and its examples; `why` has a sentence for each of them."""

    learning_rate: float
    max_length: int
    tokens_per_step: int
    why: tuple[str, ...]

    @property
    def settings(self) -> dict[str, float]:
        """The proposed values by field of `Train`."""
        return self.model_dump(exclude={"why"})


class SmallerBase(Result):
    """A base that a run fits on with its settings, where it does not fit on the loaded one."""

    title: str
    """What it is, as part of a sentence: "this base in 8-bit (int8)"."""
    load: dict[str, str | bool | None]
    """The fields of the request that loads it, without defaults."""
    memory_bytes: int
    """What base and run take together."""
    price: str
    """What it costs in quality and speed, in sentences."""


class PreflightReport(Result):
    """The check of a training run before it starts."""

    ready: bool
    problems: list[Problem]
    notes: list[str]
    warnings: tuple[Problem, ...] = ()
    """Problems that do not prevent the run but will probably make it useless."""
    matched_modules: list[str]
    trainable_parameters: int
    total_parameters: int
    reached_share: float = 0.0
    """The share of the base's parameters that the matched layers hold, 0 to 1."""
    stats: DataStats | None
    steps: int
    memory_bytes: int
    memory_available_bytes: int
    seconds: float | None
    seconds_from: str
    disk_bytes: int = 0
    """Peak disk space of checkpoints, adapter and events."""
    disk_free_bytes: int = 0
    changed_settings: int = 0
    """How many settings differ from their defaults and proposals, without name and data."""
    proposal: Proposal | None = None
    """What suits the base and the examples; None if the data cannot be read."""
    mark: DataMark | None = None
    """What the data is now, to notice later that it has changed; None if it cannot be read."""
    memory_parts: list[tuple[str, int]] = Field(default_factory=list)
    """The loaded base and what the run adds, by part: weights, adapter, ..., overhead."""
    largest_token_budget: int = 0
    smallest_change: dict[str, int | bool] | None = None
    """If the run does not fit: the smallest change of settings that makes it fit."""
    smaller_base: SmallerBase | None = None
    """If the run does not fit: a base that it fits on, with its price."""
    layout: TrainingLayout = "packed"
    """How the examples would be laid out; the notes say why where they are not packed."""
    padding_share: float = 0.0
    """The share of the computed positions that would be padding."""


class Evaluation(Result):
    """How well held-out examples are predicted. Loss is in nats per token with loss.

    `exact_match` is the share of examples in which every token with loss is the likeliest one. That
    is the share that greedy decoding would answer word for word. It is None for plain text, without
    answers.
    """

    loss: float
    exact_match: float | None
    token_accuracy: float
    examples: int
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp of the loss."""
        return math.exp(min(self.loss, MOST_NATS))


class NeutralText(Result):
    """Loss on neutral text, in nats per token, of the base alone and with the adapter.

    It shows forgetting. `after` is None if it is not a finite number.
    """

    before: float
    after: float | None

    @property
    def perplexity_before(self) -> float:
        """exp of the base's loss."""
        return math.exp(min(self.before, MOST_NATS))

    @property
    def perplexity_after(self) -> float | None:
        """exp of the loss with the adapter."""
        return None if self.after is None else math.exp(min(self.after, MOST_NATS))

    @property
    def forgets(self) -> bool:
        """Whether perplexity has risen so clearly that the base has lost some of its knowledge."""
        return self.after is None or self.after - self.before > math.log(FORGETS)


class Sample(Result):
    """A held-out example answered at the end of a run, with its expected answer."""

    prompt: str
    reference: str
    base: str
    adapter: str


class RunResult(Result):
    """The result of a training run."""

    run_id: str
    adapter: str
    state: RunState
    steps: int
    adapter_step: int = 0
    """The step that the adapter was saved from: the last or the best."""
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
    layout: TrainingLayout = "packed"
    """How the examples were laid out."""
    predicted_memory_bytes: int = 0
    preparation: str = ""
    neutral_text: NeutralText | None = None
    """How well the base predicts neutral text before and after; None if not measured."""


class QueuedRun(Result):
    """A waiting training run; `waits_for` names what else it waits for than its turn."""

    id: str
    name: str
    data: str
    method: str
    rank: int
    experts: bool = False
    """Whether it trains the experts, too."""
    added: float
    waits_for: str = ""
    question: str = ""
    """What has changed in its data since; it starts only after a decision."""


class ExportedRun(Result):
    """A run that was exported to a folder; `notes` say what could not be included."""

    path: str
    files: list[str]
    bytes: int
    notes: list[str]


class RunCommands(Result):
    """Commands that repeat a run from the command line."""

    base: str
    """Loads the base of the run."""
    fields: str
    """The run with its settings as options."""
    file: str
    """The same run, from the request file in its folder."""
    note: str


class Launch(Result):
    """The command to start a run's processes, once on this machine or on each of several."""

    run_id: str
    folder: str
    command: str
    machines: int
    each: int
    """Processes on each machine."""


class DataChange(Result):
    """The data of a run has changed: what, and the extension that was asked for, in epochs."""

    what: str
    extra_epochs: float = 0.0


class RunSummary(Result):
    """The summary of one run, read from its folder."""

    id: str
    name: str
    adapter_id: str
    state: RunState
    paused: bool = False
    """Whether it is paused until it is resumed."""
    colour: str
    data: str
    base_name: str
    quantization: str = "none"
    precision: str = ""
    """The type that its steps are computed in; empty before that is known."""
    layout: TrainingLayout = "packed"
    layout_note: str = ""
    """How its examples are laid out, and why; empty for packed ones."""
    method: str
    rank: int
    experts: bool = False
    """Whether it trains the experts, too."""
    created: float
    begun: float
    """When it was last started or resumed."""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    exact_match: float | None = None
    kept_step: int = 0
    """The step of the adapter and of these held-out results; 0 means the last."""
    tokens_per_second: float | None = None
    seconds: float = 0.0
    predicted_seconds: float | None = None
    """Training time as predicted after the first steps."""
    message: str = ""
    cure: str = ""
    error: str = ""
    peak_memory_bytes: int = 0
    """Measured: the peak during the run, minus the use before it."""
    predicted_memory_bytes: int = 0
    preparation: str = ""
    """How a quantised base was prepared for the run, and why."""
    neutral_text: NeutralText | None = None
    """How well the base predicts neutral text before and after; None if not measured."""
    retry: dict[str, int | bool] = Field(default_factory=dict)
    """After running out of memory: the settings that would fit."""
    data_change: DataChange | None = None
    """If set, it was not resumed because its data has changed, and waits for a decision."""
    data_changes: tuple[str, ...] = ()
    """A sentence about each time that it went on with other data."""
    launched: bool = False
    """Whether it runs in separate processes, which read commands from its folder."""
    resumable: bool = False
    not_extendable: str = ""
    """Why a finished run cannot be extended by more epochs; empty if it can."""
    note: str = ""
    """The user's note."""
