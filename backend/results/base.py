"""What every result is made of, and what operations on the base model come to."""

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """Base of all results.

    A number that is not finite is written as it is: as `null` the result could not be read again.
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
    """The catalogue's name of a chat template that the base was given, else own."""
    memory_predicted_bytes: int
    memory_measured_bytes: int
    fingerprint: str
    seconds: float
    quantization: str = "none"
    quantization_note: str = ""
    """What quantising did, in a sentence; empty for a base in full precision."""
    double_quant: bool = False
    quantized_compute: str = ""
    """What the quantised layers are unpacked to; empty where that follows their input."""
    bytes_saved: int = 0
    """What quantising saved against the same base in the type of its other weights."""
    quantized_bytes: int = 0
    quantized_full_bytes: int = 0
    """The quantised layers as they are, and as they would be in fp32."""
    places: int = 1
    """How many processes of a run this machine has room for: its GPUs, or its cores."""

    @property
    def loaded_as(self) -> str:
        """What changes whenever a run on the base would be another one, or take other memory.

        The fingerprint is that of its files: adapters move freely between the ways to load them.
        """
        ways = (self.quantization, self.double_quant, self.precision, self.quantized_compute)
        return " ".join(map(str, (self.fingerprint, *ways, self.given_template, self.device)))


class QuantizationChoice(Result):
    """One way to load a base, before it is loaded. Seconds are relative to full precision."""

    quantization: str
    title: str
    memory_bytes: int
    run_bytes: int
    """What a usual training run would take beside the weights."""
    relative_seconds: float
    fits: bool
    summary: str
    can: str
    cannot: str
    blocker: str = ""
    """Why this device cannot quantise so; empty where it can."""


class QuantizationTable(Result):
    """What each quantisation of a base takes and costs, and which one to take."""

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
    """For a GPU that is not on this machine: `free_bytes` and what fits there are not known."""


class Unloaded(Result):
    """What letting the base go gave back."""

    freed_bytes: int


class Problem(Result):
    """Something that keeps an operation from starting, and the way out."""

    what: str
    cure: str = ""
    droppable: bool = False
    """Whether it is about rows of the data, and the run can do without them."""
