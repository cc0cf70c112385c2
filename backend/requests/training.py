"""Requests about learning: the adapter's configuration, a run and its checks."""

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from backend.catalogue.learning_rate import USUAL_RATE
from backend.catalogue.methods import Lora
from backend.fields import NAME_LENGTH, Request, check_display_name, knob
from backend.requests.data import (
    Columns,
    bad_rows,
    data_source,
    held_out_source,
    longest_example,
)
from backend.requests.watching import Prompts, watch_prompts


class Train(Request):
    """Teach the loaded base something new with a fresh adapter."""

    name: str = knob(
        label="Name",
        level="basic",
        help="What the new adapter is called: letters, digits, spaces, - and _.",
    )
    data: str = data_source()
    columns: Columns = Columns()
    adapter: Lora = Lora()
    epochs: float = knob(
        6.0,
        label="Epochs",
        unit="passes",
        gt=0,
        le=1000,
        level="basic",
        step=1,
        help="How often every example is seen. More learns more, and may learn by heart.",
    )
    max_steps: int | None = knob(
        None,
        label="Most steps",
        unit="steps",
        ge=1,
        le=10_000_000,
        help="Ends the run after so many steps, whatever the epochs say; empty means no limit.",
    )
    learning_rate: float = knob(
        USUAL_RATE,
        label="Learning rate",
        gt=0,
        le=1,
        level="basic",
        help="How big each correction is. Too high and the loss jumps, too low and nothing moves.",
    )
    tokens_per_step: int = knob(
        512,
        label="Token budget",
        unit="tokens",
        ge=16,
        le=1_048_576,
        step=64,
        help="How much text is looked at in one go. More is steadier and needs more memory.",
    )
    accumulation: int = knob(
        1,
        label="Accumulation",
        unit="packs",
        ge=1,
        le=1024,
        step=1,
        help="Packs added up before each correction: a bigger batch without more memory.",
    )
    scheduler: Literal["linear", "cosine", "constant"] = knob(
        "cosine",
        label="Schedule",
        help="How the learning rate changes after the warm-up: falls evenly, gently, or stays.",
    )
    warmup: float = knob(
        0.05,
        label="Warm-up",
        unit="share of the steps",
        ge=0,
        lt=1,
        step=0.01,
        help="Share of the steps in which the learning rate rises from zero; steadies the start.",
    )
    weight_decay: float = knob(
        0.0,
        label="Weight decay",
        ge=0,
        le=1,
        step=0.01,
        help="Pulls the adapter's numbers towards zero a little; fights learning by heart.",
    )
    max_length: int = longest_example()
    seed: int = knob(
        42,
        label="Seed",
        ge=0,
        le=2**31 - 1,
        step=1,
        help="The same seed, data and settings give the same adapter, in the same precision.",
    )
    precision: Literal["auto", "fp32", "bf16"] = knob(
        "auto",
        label="Compute precision",
        help="How steps are computed; auto times both each time and takes the faster.",
    )
    gradient_checkpointing: bool = knob(
        False,
        label="Gradient checkpointing",
        help="Remembers less and recomputes instead: much less memory, about a third slower.",
    )
    eval_share: float = knob(
        0.1,
        label="Held-out share",
        unit="share of the examples",
        ge=0,
        le=0.5,
        step=0.01,
        help="Examples kept aside to test what was learned. Bundled sets bring their own.",
    )
    held_out: str | None = held_out_source()
    drop_bad_rows: bool = bad_rows()
    save_every: int = knob(
        50,
        label="Checkpoint every",
        unit="steps",
        ge=1,
        le=1_000_000,
        step=1,
        help="How often the run is saved, so that it can be resumed after a crash.",
    )
    patience: int | None = knob(
        None,
        label="End early after",
        unit="tests",
        ge=1,
        le=100,
        help="Ends once held-out loss was no better in so many tests; empty never does.",
    )
    keep_best: bool = knob(
        False,
        label="Keep the best",
        help="Takes the state with the lowest held-out loss as the adapter, and not the last.",
    )
    watch: Prompts | None = watch_prompts(
        "Questions that base and adapter answer at each test. "
        "Empty takes the one a bundled set brings.",
    )
    start_from: str | None = knob(
        None,
        label="Start from",
        max_length=NAME_LENGTH,
        help="An adapter of this base to go on from; empty starts a fresh one.",
    )
    processes: int = knob(
        1,
        label="Processes",
        ge=1,
        le=1024,
        step=1,
        help="How many share the packs of each step, one per GPU, each with the base in memory.",
    )

    @model_validator(mode="after")
    def _shares_evenly(self) -> Self:
        if self.accumulation % self.processes:
            packs = "1 pack" if self.accumulation == 1 else f"{self.accumulation} packs"
            enough = -(-self.accumulation // self.processes) * self.processes
            raise ValueError(
                f"Each step has {packs}, which {self.processes} processes cannot share evenly. "
                f"Set Accumulation to a multiple of {self.processes}, such as {enough}."
            )
        return self

    _name = field_validator("name")(check_display_name)

    @property
    def longest(self) -> int:
        """Tokens an example may have: it must fit into one pack."""
        return min(self.max_length, self.tokens_per_step)


class Preflight(Request):
    """Look at a training run before it starts; nothing is touched."""

    train: Train
    measure: bool = knob(
        True,
        label="Time a step",
        help="Where no past run on this machine tells the speed, time one real step.",
    )


def _run_id() -> Any:
    return knob(
        label="Run", max_length=100, pattern=r"^[A-Za-z0-9_-]+$", help="The run's id, from Runs."
    )


class Resume(Request):
    """Go on with a stopped or interrupted run from its last checkpoint, or extend a finished one.

    An extension keeps the curve and the optimiser's memory; the schedule of the learning rate runs
    once more over the added steps.
    """

    run_id: str = _run_id()
    extra_epochs: float = knob(
        0.0,
        label="Extend by",
        unit="passes",
        ge=0,
        le=1000,
        step=1,
        help="How often every example is seen again once a run is finished; 0 only resumes.",
    )


class ExportRun(Request):
    """Write a run into a folder that stands alone, with a script that repeats it."""

    run_id: str = _run_id()
    destination: str = knob(
        label="Folder",
        min_length=1,
        max_length=1000,
        help="A new folder: request, events, log, adapter and script are written to it.",
    )
