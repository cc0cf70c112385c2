"""What every result is made of, and what operations on the base model come to."""

from pydantic import BaseModel, ConfigDict


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


class Unloaded(Result):
    """What letting the base go gave back."""

    freed_bytes: int


class Problem(Result):
    """Something that keeps an operation from starting, and the way out."""

    what: str
    cure: str = ""
