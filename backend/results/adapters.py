"""Results about adapters: in the library, on the model, and before they are added."""

from typing import Literal

from backend.results.base import Problem, Result
from backend.results.training import Evaluation


class DamagedAdapter(Result):
    """An adapter folder in the library with an unreadable side-car, and a hint."""

    id: str
    folder: str
    what: str
    cure: str


class AdapterInfo(Result):
    """One adapter of the library, as read from its side-car file.

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
    origin: Literal["run", "blend", "added", "converted"] = "run"
    recipe: str = ""
    """Its origin if no run made it: "0.7 pirate + 0.3 polite (cat)", "from folder x"."""
    strength: Literal["any", "on-off"] = "any"
    """Whether its effect can be scaled by any factor, or only switched on and off."""
    targets: tuple[str, ...] = ()
    by_parameter: bool = False
    """Whether it adapts parameters such as those of experts (`target_parameters`)."""
    chat_template: str = "own"
    """The chat template that its base was given for training; "own" if the base had its own."""


class SavedAdapter(Result):
    """A copy of an adapter on disk. `max_difference`: of log-probabilities, read back and live."""

    path: str
    fingerprint: str
    tensors: int
    bytes: int
    max_difference: float


class PushedAdapter(Result):
    """An adapter on the Hub; every file there was compared with the one that was sent."""

    repo_id: str
    url: str
    commit: str
    files: list[str]
    bytes: int


class ActiveSet(Result):
    """Which adapters answer now."""

    adapters: list[tuple[str, float]]
    seconds: float


class AdapterStatus(Result):
    """The state of one adapter in the model (PEFT's `get_model_status`)."""

    name: str
    loaded: bool
    active: bool
    strength: float
    trainable: bool
    merged: bool
    memory_bytes: int


class LayerNorm(Result):
    """How much an adapter changes one layer.

    `norm` is the Frobenius norm of its weight change, `relative` that norm over the base weight's
    (None if no base is loaded); `effective_rank` is exp of the entropy of the squared singular
    values.
    """

    layer: str
    norm: float
    relative: float | None
    rank: int
    effective_rank: float


class AdapterReport(Result):
    """An adapter on disk, before anything is loaded."""

    source: str
    suggested_name: str
    method: str
    rank: int
    alpha: float
    ranks: list[int]
    targets: list[str]
    parameters: int
    bytes: int
    made_for: str
    base_match: Literal["same", "unknown", "other", "no base"]
    verdict: Literal["fits", "warning", "cannot"]
    reasons: list[Problem]
    layers: list[LayerNorm]
    effective_rank: float
    lineage: list[tuple[str, str]]
    in_library: bool
    notes: tuple[str, ...] = ()
    """What was chosen, converted or left out, if anything, in one sentence each."""
    choices: tuple[str, ...] = ()
    """The sources of the other adapters in the same folder, zip or repository."""


class LoadedAdapter(Result):
    """An adapter that was added. `notes` describe changes that were made to it, if any."""

    adapter: AdapterInfo
    missing_keys: list[str]
    unexpected_keys: list[str]
    max_difference: float
    notes: list[str]
    seconds: float


class Removed(Result):
    """An adapter that was unloaded or deleted; `active` lists the adapters that answer now."""

    name: str
    active: list[tuple[str, float]]
    freed_bytes: int


class Renamed(Result):
    """An adapter under its new name."""

    adapter: AdapterInfo


class Blend(Result):
    """A new adapter that was blended from others.

    `relative_error` is the distance from the exact weighted sum over the sum's own size, for all
    layers together and for each (Frobenius norms).
    """

    adapter: AdapterInfo
    rank: int
    relative_error: float
    relative_error_per_layer: dict[str, float]
    seed: int
    max_difference: float
    seconds: float
    notes: tuple[str, ...] = ()


class SimilarityReport(Result):
    """Cosine similarity of adapters (Frobenius inner product of their weight changes)."""

    names: list[str]
    cosine: list[list[float]]
    per_layer: dict[str, list[list[float]]]


class Merged(Result):
    """A base with merged adapters, on disk.

    `max_difference` is of log-probabilities, between the written model and base plus adapters;
    None if they were not compared. `verified` describes the check.
    """

    path: str
    bytes: int
    files: int
    precision: str
    max_difference: float | None
    verified: str
    notes: list[str]
    seconds: float
    peak_memory_bytes: int


class MergeNeeds(Result):
    """What a merge needs; memory is in addition to that of an idle process."""

    precision: str
    disk_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    memory_free_bytes: int
    files: int


class Converted(Result):
    """A plain LoRA adapter converted from another kind; `relative_error` as in `Blend`."""

    adapter: AdapterInfo
    rank: int
    relative_error: float
    relative_error_per_layer: dict[str, float]
