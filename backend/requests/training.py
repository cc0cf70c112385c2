"""Requests about training: a run, the check before it, resume and export."""

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from backend.catalogue.learning_rate import USUAL_RATE, usual_rate
from backend.catalogue.methods import Lora
from backend.fields import NAME_LENGTH, Request, check_display_name, knob
from backend.requests.data import (
    Columns,
    Day,
    FillsPlaceholders,
    LongExamples,
    Placeholders,
    bad_rows,
    data_source,
    held_out_source,
    learned_answers,
    learned_thoughts,
    long_examples,
    longest_example,
    placeholder_texts,
    template_date,
)
from backend.requests.watching import Prompts, watch_prompts


class Train(FillsPlaceholders, Request):
    """Train a new adapter on the loaded base model."""

    name: str = knob(
        label="Name",
        level="basic",
        help="The name of the new adapter: letters, digits, spaces, - and _.",
    )
    data: str = data_source()
    columns: Columns = Columns()
    adapter: Lora = Lora()
    epochs: float = knob(
        6.0,
        label="Epochs",
        gt=0,
        le=1000,
        level="basic",
        step=1,
        help="How often each example is used. More epochs teach more; too many overfit (it "
        "memorises the examples).",
    )
    max_steps: int | None = knob(
        None,
        label="Maximum steps",
        unit="steps",
        ge=1,
        le=10_000_000,
        help="Stops the run after this many steps, regardless of epochs. Empty means no limit.",
    )
    learning_rate: float | None = knob(
        None,
        label="Learning rate",
        gt=0,
        le=1,
        level="basic",
        help="The size of each update: too high is unstable, too low hardly learns. Empty: what "
        "suits the base.",
    )
    tokens_per_step: int = knob(
        512,
        label="Tokens per batch",
        unit="tokens",
        ge=16,
        le=1_048_576,
        step=64,
        help="Tokens in one forward and backward pass. More is steadier and needs more memory.",
    )
    accumulation: int = knob(
        1,
        label="Accumulation",
        unit="batches",
        ge=1,
        le=1024,
        step=1,
        help="Batches per optimizer step: their gradients are summed, which needs no more memory.",
    )
    scheduler: Literal["linear", "cosine", "constant"] = knob(
        "cosine",
        label="Schedule",
        help="The learning rate after the warm-up: it falls in a straight line or along a cosine "
        "curve, or stays constant.",
    )
    warmup: float = knob(
        0.05,
        label="Warm-up",
        unit="share of the steps",
        ge=0,
        lt=1,
        step=0.01,
        help="Share of the steps in which the learning rate rises from zero, for a steadier start.",
    )
    optimizer: Literal["adamw", "adamw_8bit"] = knob(
        "adamw",
        label="Optimiser",
        help="adamw_8bit takes a quarter of the memory; it is a little less exact, and slow on a "
        "processor.",
    )
    weight_decay: float = knob(
        0.0,
        label="Weight decay",
        ge=0,
        le=1,
        step=0.01,
        help="Pulls the adapter's weights towards zero a little, which reduces overfitting.",
    )
    max_length: int = longest_example()
    long_examples: LongExamples = long_examples()
    seed: int = knob(
        42,
        label="Seed",
        ge=0,
        le=2**31 - 1,
        step=1,
        help="With the same seed, data, settings and precision, training gives the same adapter.",
    )
    precision: Literal["auto", "fp32", "bf16"] = knob(
        "auto",
        label="Compute precision",
        help="The type that steps are computed in. auto times both before each run and takes the "
        "faster one.",
    )
    gradient_checkpointing: bool = knob(
        False,
        label="Gradient checkpointing",
        help="Recomputes activations instead of storing them: much less memory, a third slower.",
    )
    eval_share: float = knob(
        0.1,
        label="Held-out share",
        unit="share of the examples",
        ge=0,
        le=0.5,
        step=0.01,
        help="Share of the examples used only for testing. Bundled sets have their own test data.",
    )
    held_out: str | None = held_out_source()
    drop_bad_rows: bool = bad_rows()
    answers: Literal["all", "last"] = learned_answers()
    learn_thoughts: bool = learned_thoughts()
    date: Day | None = template_date()
    placeholders: Placeholders | None = placeholder_texts()
    save_every: int = knob(
        50,
        label="Checkpoint every",
        unit="steps",
        ge=1,
        le=1_000_000,
        step=1,
        help="How often a checkpoint is saved, so that the run can be resumed after a crash.",
    )
    patience: int | None = knob(
        None,
        label="Stop early after",
        unit="tests",
        ge=1,
        le=100,
        help="Stops if the held-out loss has not improved for this many tests. Empty means never.",
    )
    keep_best: bool = knob(
        False,
        label="Keep the best",
        help="Saves the adapter from the test with the lowest held-out loss, not the last step.",
    )
    watch: Prompts | None = watch_prompts(
        "Questions that the base and the adapter answer at each test. "
        "If empty, a bundled set's own question is used.",
    )
    start_from: str | None = knob(
        None,
        label="Start from",
        max_length=NAME_LENGTH,
        help="An adapter of this base to continue training. Empty starts with a new one.",
    )
    processes: int = knob(
        1,
        label="Processes",
        ge=1,
        le=1024,
        step=1,
        help="How many share the batches of each step: one per GPU, each with a copy of the base.",
    )

    @model_validator(mode="after")
    def _shares_evenly(self) -> Self:
        if self.accumulation % self.processes:
            batches = "1 batch" if self.accumulation == 1 else f"{self.accumulation} batches"
            enough = -(-self.accumulation // self.processes) * self.processes
            raise ValueError(
                f"Each step has {batches}, which {self.processes} processes cannot share evenly. "
                f"Set Accumulation to a multiple of {self.processes}, such as {enough}."
            )
        return self

    _name = field_validator("name")(check_display_name)

    @property
    def rate(self) -> float:
        """The learning rate; that of small bases where `with_rate` has not filled it in."""
        return USUAL_RATE if self.learning_rate is None else self.learning_rate

    def with_rate(self, parameters: int) -> Self:
        """Return it with a learning rate: the chosen one, or what suits a base of this size."""
        if self.learning_rate is not None:
            return self
        return self.model_copy(update={"learning_rate": usual_rate(parameters)})

    @property
    def longest(self) -> int:
        """Most tokens of an example: it must fit into one batch."""
        return min(self.max_length, self.tokens_per_step)


class Preflight(Request):
    """Check a training run before it starts; nothing is changed."""

    train: Train
    measure: bool = knob(
        True,
        label="Time a step",
        help="Time one real step if no earlier run on this machine shows the speed.",
    )
    in_turn: bool = knob(
        False,
        label="In its turn",
        help="Check it for the queue: the memory that the current run takes counts as free.",
    )


def _run_id() -> Any:
    return knob(
        label="Run", max_length=100, pattern=r"^[A-Za-z0-9_-]+$", help="The run's id, from Runs."
    )


class Resume(Request):
    """Continue a stopped or interrupted run from its last checkpoint, or extend a finished one.

    An extension keeps the loss curve and the optimiser's state. The learning rate schedule starts
    again for the added steps.
    """

    run_id: str = _run_id()
    extra_epochs: float = knob(
        0.0,
        label="Extend by",
        unit="epochs",
        ge=0,
        le=1000,
        step=1,
        help="How many epochs to add to a finished run. 0 only resumes an unfinished one.",
    )
    changed_data: bool = knob(
        False,
        label="Go on with changed data",
        help="If the data has changed since, make what remains over it as it is now. Off: refuse.",
    )


class ExportRun(Request):
    """Write a run into a self-contained folder, with a script that repeats it."""

    run_id: str = _run_id()
    destination: str = knob(
        label="Folder",
        min_length=1,
        max_length=1000,
        help="A new folder: request, events, log, adapter and script are written to it.",
    )
