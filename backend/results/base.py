"""The base class of all results, and the results of operations on the base model."""

from pydantic import BaseModel, ConfigDict

from backend.results.training_layout import TrainingLayout


class Result(BaseModel):
    """Base of all results.

    Non-finite numbers are written as NaN or Infinity, because `null` could not be read back.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")


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
    given_template: str = "own"
    """The catalogue id of the chat template that the base was given, else "own"."""
    memory_predicted_bytes: int
    memory_measured_bytes: int
    fingerprint: str
    seconds: float
    quantization: str = "none"
    quantization_note: str = ""
    """A sentence about the quantisation; empty for a base in full precision."""
    double_quant: bool = False
    quantized_compute: str = ""
    """The type that quantised layers are unpacked to; empty if that is the type of their input."""
    bytes_saved: int = 0
    """Bytes saved compared with the same base in the type of its other weights."""
    quantized_bytes: int = 0
    quantized_full_bytes: int = 0
    """Bytes of the quantised layers, as they are and as they would be in fp32."""
    stored_quantized: str = ""
    """How the files themselves are quantised, such as FP8; empty for full-precision files."""
    original: str = ""
    """The full-precision model of which already quantised files say that they are a copy."""
    notes: tuple[str, ...] = ()
    """What a person should know about how this checkpoint was read."""
    has_experts: bool = False
    """Whether it is a mixture whose experts are parameters, which an adapter can also train."""
    untouched: list[str] = []
    """The parts that no adapter changes, such as "the vision tower (27 layers, 412 M parameters)".

    A model of text alone has none."""
    places: int = 1
    """How many processes a run may have on this machine: its number of GPUs or cores."""
    layout: TrainingLayout | None = None
    """How a run on it lays out its examples; None if that was not found out."""
    layout_reason: str = ""
    """Why they are not packed, as part of a sentence; empty if they are."""
    training_blocker: str = ""
    """Why no run is possible on it; empty if one is."""

    @property
    def loaded_as(self) -> str:
        """A key that changes whenever a run on the base would differ, or its memory would.

        The fingerprint covers only the files, so an adapter fits however they are loaded.
        """
        ways = (self.quantization, self.double_quant, self.precision, self.quantized_compute)
        return " ".join(map(str, (self.fingerprint, *ways, self.given_template, self.device)))


class QuantizationChoice(Result):
    """One way to load a base, before it is loaded. Seconds are relative to full precision."""

    quantization: str
    title: str
    memory_bytes: int
    run_bytes: int
    """What a typical training run takes in addition to the weights."""
    relative_seconds: float
    fits: bool
    summary: str
    can: str
    cannot: str
    blocker: str = ""
    """Why this device does not support the quantisation; empty if it does."""


class QuantizationTable(Result):
    """Memory and speed of each quantisation of a base, and which one is recommended."""

    source: str
    precision: str
    device: str
    parameters: int
    free_bytes: int
    choices: list[QuantizationChoice]
    recommended: str
    reason: str
    speed_from: str
    elsewhere: bool = False
    """Whether it is for a GPU of another machine, whose `free_bytes` and fit are unknown."""


class Unloaded(Result):
    """The memory that unloading the base freed."""

    freed_bytes: int


class Problem(Result):
    """Something that prevents an operation, and a hint."""

    what: str
    cure: str = ""
    droppable: bool = False
    """Whether it is about data rows that the run can skip."""
