"""Inspection of an adapter before it is added: its kind, its changes, and whether it fits.

Changes nothing; knows nothing of the session beyond the facts that it is given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from backend.catalogue.chat_templates import CHAT_TEMPLATES
from backend.engine.adapters.import_sources import Incoming, display_name
from backend.engine.adapters.split_experts import require_parameters
from backend.engine.core.adapter_keys import layer_of
from backend.engine.methods.config_validation import read_raw_config, shown
from backend.engine.methods.file_validation import Scanned, scan
from backend.engine.methods.peft_io import WEIGHTS
from backend.engine.methods.peft_io import method_title as method_title_of
from backend.engine.methods.plain_lora import Change
from backend.engine.models.linear_layers import Target
from backend.errors import ModelError, Unsupported, WorkbenchError
from backend.files import read_limits
from backend.files.foreign_files import read_text
from backend.files.safetensors_header import StoredTensor, read_header
from backend.library import SIDECAR
from backend.results import AdapterInfo, AdapterReport, LayerNorm, ModelFacts, Problem

_ONLY_FACTORS = (
    "The sizes below are those of its two factors only. The change of the whole weight can be "
    "shown only if the base is in memory in full precision."
)
_SAID = ("base_name", "base_fingerprint", "recipe", "data")


LARGEST_WHOLE = 1024
"""Above this, a whole matrix' singular values take too long; those of the factors are used."""


SHOWN_TARGETS = 30
"""The limit for refused adapters; for others it is the base's number of layers."""


class Place(NamedTuple):
    """The base that an adapter should fit: its facts, its layers, and their weights if in memory.

    `changes_of` computes an adapter folder's change of each of these weights.
    """

    facts: ModelFacts | None
    layers: list[Target] | None
    weights: dict[str, torch.Tensor]
    changes_of: Callable[[Path], dict[str, Change]] | None = None


def inspect(found: Incoming, place: Place, *, in_library: bool) -> AdapterReport:
    """Report on an adapter; what blocks adding it is listed in `reasons`, never raised."""
    reasons: list[Problem] = []
    verdict = "fits"
    try:
        require_parameters(found.folder, place.layers, found.name)
        scanned = scan(found.folder, place.layers, name=found.name)
    except (ModelError, Unsupported) as error:
        return refused(found, error, place.facts, in_library=in_library)
    match, said = base_match(found, place.facts)
    if place.facts is None:
        verdict = "cannot"
        reasons.append(Problem(what="No base model is loaded.", cure="Load the base first."))
    elif match != "same":
        verdict = "warning"
        reasons.append(Problem(what=said))
    if place.facts is not None and (other := other_template(found, place.facts)) is not None:
        verdict = "warning" if verdict == "fits" else verdict
        reasons.append(other)
    if scanned.initial and place.facts is not None and place.facts.quantization != "none":
        verdict = "cannot"
        reasons.append(_needs_full_precision(scanned))
    elif scanned.initial:
        verdict = "warning" if verdict == "fits" else verdict
        reasons.append(Problem(what=_initial_note(scanned)))
    changes = _changes(found, scanned, place)
    if changes is None and (scanned.initial or scanned.config.use_dora):
        reasons.append(Problem(what=_ONLY_FACTORS))
    layers = layer_norms(scanned, place.weights, changes or {})
    config = scanned.config
    return AdapterReport(
        source=found.origin,
        suggested_name=found.name,
        method=method_title(scanned),
        rank=max(fit.rank for fit in scanned.fits),
        alpha=float(config.lora_alpha),
        ranks=sorted({fit.rank for fit in scanned.fits}),
        targets=sorted({fit.title for fit in scanned.fits}),
        parameters=sum(t.numel() for t in scanned.tensors.values()),
        bytes=(found.folder / WEIGHTS).stat().st_size,
        made_for=made_for(found),
        base_match=match,
        verdict=verdict,
        reasons=reasons,
        layers=layers,
        effective_rank=sum(each.effective_rank for each in layers) / len(layers),
        lineage=lineage(found, in_library=in_library),
        in_library=in_library,
        notes=found.notes,
        choices=found.choices,
    )


def given_template(found: Incoming) -> str:
    """Return the catalogue name of the chat template with which the adapter was trained."""
    ours = sidecar(found)
    return ours.chat_template if ours and ours.chat_template in CHAT_TEMPLATES else "own"


def other_template(found: Incoming, facts: ModelFacts) -> Problem | None:
    """Return the problem where an adapter was trained with another chat template."""
    given = given_template(found)
    if given in ("own", facts.given_template):
        return None
    title = CHAT_TEMPLATES[given].title
    return Problem(
        what=f"It was trained in the chat template {title}, but the base is loaded with another "
        "one, so its answers may be worse.",
        cure=f"Load the base with the chat template {title} (Load, Advanced).",
    )


def _needs_full_precision(scanned: Scanned) -> Problem:
    return Problem(
        what=f"{method_title(scanned)} takes a part out of the base's own weights, but this base "
        "is loaded quantised, so its weights are only approximate.",
        cure="Load the base without quantisation and add the adapter there: it becomes plain "
        "LoRA, which also fits the quantised base.",
    )


def method_title(scanned: Scanned) -> str:
    """Return the title of a scanned adapter's method."""
    if scanned.initial:
        return "PiSSA" if scanned.initial.startswith("pissa") else "OLoRA"
    return method_title_of(scanned.config)


def sidecar(found: Incoming) -> AdapterInfo | None:
    """Return the side-car file that the workbench wrote for an adapter, if there is one."""
    path = found.folder / SIDECAR
    try:
        text = read_text(path, read_limits.ADAPTER_TEXT_BYTES, SIDECAR)
        info = AdapterInfo.model_validate_json(text)
        info = info.model_copy(update={field: shown(getattr(info, field), 200) for field in _SAID})
        # NaN can be read but is written as null; such a side-car would hide the adapter.
        return AdapterInfo.model_validate_json(info.model_dump_json())
    except (OSError, ValueError, ModelError):
        return None


def made_for(found: Incoming) -> str:
    """Return the base that an adapter says it was made for: only a name, never used as a path."""
    ours = sidecar(found)
    if ours is not None:
        return ours.base_name
    raw = read_raw_config(found.folder, found.name)
    said = shown(raw.get("base_model_name_or_path") or "", 200)
    return said.rstrip("/").rsplit("/", 1)[-1] if _is_path(said) else said


def base_match(found: Incoming, facts: ModelFacts | None) -> tuple[str, str]:
    """Return whether an adapter was made for the loaded base, and a sentence about it."""
    if facts is None:
        return "no base", ""
    ours, base = sidecar(found), made_for(found)
    if ours is not None and ours.base_fingerprint:
        if ours.base_fingerprint == facts.fingerprint:
            return "same", ""
        if _is_original(base, facts):
            return "other", _about_copy(base)
        return "other", (
            f"It was made for another base ({base}). The shapes fit, but the weights differ, so "
            "its answers may make little sense."
        )
    if base and base in (facts.name, facts.source, Path(facts.path).name):
        return "same", ""
    if _is_original(base, facts):
        return "other", _about_copy(base)
    named = f"It says it was made for {base}" if base else "It does not name its base"
    return "unknown", f"{named}. Its shapes fit {facts.name}; nothing more can be checked."


def _is_original(base: str, facts: ModelFacts) -> bool:
    """Tell whether a name is that of the full-precision model of a loaded quantised copy."""
    return bool(facts.original) and base in (facts.original, facts.original.rsplit("/", 1)[-1])


def _about_copy(base: str) -> str:
    return (
        f"It was made for {base}, and the loaded base is a quantised copy of that, so its answers "
        "may differ a little."
    )


def _changes(found: Incoming, scanned: Scanned, place: Place) -> dict[str, Change] | None:
    """Return the weight changes of an adapter that is not only B A; None if unknown."""
    plain = not (scanned.initial or scanned.config.use_dora)
    if plain or place.changes_of is None:
        return None
    try:
        return place.changes_of(found.folder)
    except Unsupported:
        return None


def layer_norms(
    scanned: Scanned, weights: dict[str, torch.Tensor], changes: dict[str, Change]
) -> list[LayerNorm]:
    """Measure each layer's weight change, from its small factors where the change is only B A.

    The singular values of B A are those of R_B R_A^T, where R comes from a QR of each factor.
    """
    found = []
    for fit in scanned.fits:
        values = fit.scaling * _singular_values(
            scanned.tensors[fit.key("lora_A.weight")].double(),
            scanned.tensors[fit.key("lora_B.weight")].double(),
            fit.experts,
        )
        norm = float(values.norm())
        each = [effective_rank(part) for part in values.view(fit.experts, -1)]
        effective = sum(each) / len(each)
        if (change := changes.get(fit.layer)) is not None:
            norm, values = _measure(change, values)
            effective = effective_rank(values)
        base = weights.get(fit.layer)
        size = float(base.float().norm()) if base is not None else 0.0
        found.append(
            LayerNorm(
                layer=fit.layer,
                norm=norm,
                relative=norm / size if size else None,
                rank=fit.rank,
                effective_rank=effective,
            )
        )
    return found


def _singular_values(down: torch.Tensor, up: torch.Tensor, experts: int) -> torch.Tensor:
    """Return the singular values of up @ down, (rank x experts,), those of each expert in turn.

    down: (experts x rank, inputs); up: (outputs, rank x experts), as PEFT's `ParamWrapper` orders
    them; any float dtype.
    """
    downs = down.reshape(experts, -1, down.shape[1])
    ups = up.reshape(up.shape[0], -1, experts).permute(2, 0, 1)
    small = torch.linalg.qr(ups).R @ torch.linalg.qr(downs.mT).R.mT
    return torch.linalg.svdvals(small).flatten()


def _measure(change: Change, of_factors: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the norm and the singular values of a change."""
    if change.factors is not None:
        down, up = (part.double() for part in change.factors)
        values = torch.linalg.svdvals(torch.linalg.qr(up).R @ torch.linalg.qr(down.T).R.T)
        return float(values.norm()), values
    assert change.whole is not None
    if min(change.whole.shape) > LARGEST_WHOLE:
        return float(change.whole.norm()), of_factors
    values = torch.linalg.svdvals(change.whole.double())
    return float(values.norm()), values


def effective_rank(singular_values: torch.Tensor) -> float:
    """Return exp of the entropy of the squared values' shares (Roy and Vetterli 2007).

    singular_values: (n,), any float dtype.
    """
    squares = singular_values.double() ** 2
    total = float(squares.sum())
    if total == 0:
        return 0.0
    shares = squares[squares > 0] / total
    return float(torch.exp(-(shares * shares.log()).sum()))


def lineage(found: Incoming, *, in_library: bool) -> list[tuple[str, str]]:
    """Return what is known of an adapter's origin.

    The name of an adapter in the library is not included; it is shown above and may change.
    """
    ours = sidecar(found)
    if ours is None:
        return [("From", found.origin)]
    called = [] if in_library else [("Called", display_name(ours.name))]
    known = [("From", found.origin), *called, ("Base", ours.base_name)]
    if ours.recipe:
        known.append(("Made of", ours.recipe))
    if ours.data:
        known.append(("Data", ours.data))
    if ours.steps:
        known.append(("Steps", str(ours.steps)))
    return known


def refused(
    found: Incoming, error: WorkbenchError, facts: ModelFacts | None, *, in_library: bool
) -> AdapterReport:
    """Report on an adapter that cannot be added: the reason, and everything that can be read.

    Unknown fields are empty or 0.
    """
    raw, stored = _configuration(found), _stored(found)
    rank = round(_positive(raw.get("r")))
    return AdapterReport(
        source=found.origin,
        suggested_name=found.name,
        method=_said_method(raw),
        rank=rank,
        alpha=_positive(raw.get("lora_alpha")),
        ranks=[rank] if rank else [],
        targets=_said_targets(raw, stored),
        parameters=sum(each.numel for each in stored),
        bytes=sum(each.bytes for each in stored),
        made_for=made_for(found) if raw else "",
        base_match=base_match(found, facts)[0] if raw else "unknown" if facts else "no base",
        verdict="cannot",
        reasons=[Problem(what=error.what, cure=error.cure)],
        layers=[],
        effective_rank=0.0,
        lineage=lineage(found, in_library=in_library),
        in_library=in_library,
        notes=found.notes,
        choices=found.choices,
    )


def _configuration(found: Incoming) -> dict[str, Any]:
    try:
        return read_raw_config(found.folder, found.name)
    except ModelError:
        return {}


def _stored(found: Incoming) -> list[StoredTensor]:
    """Return the tensors of an adapter file from its header; none where the header is damaged."""
    path = found.folder / WEIGHTS
    try:
        return read_header(path) if path.is_file() else []
    except (ModelError, RecursionError):
        return []


def _positive(value: object) -> float:
    """Return a plausible positive number from a foreign configuration, else 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 < value <= 1e6 else 0.0


def _said_method(raw: dict[str, Any]) -> str:
    """Return the method that a configuration names, even if it is not supported."""
    kind = raw.get("peft_type")
    if kind != "LORA":
        return shown(kind) if isinstance(kind, str) else ""
    if raw.get("use_dora") is True:
        return "DoRA"
    return "rsLoRA" if raw.get("use_rslora") is True else "LoRA"


def _said_targets(raw: dict[str, Any], stored: list[StoredTensor]) -> list[str]:
    """Return the modules in an adapter's file, or else its configured target modules."""
    held = {layer_of(each.key).rsplit(".", 1)[-1] for each in stored if ".lora_" in each.key}
    asked = raw.get("target_modules")
    named = {each for each in asked if isinstance(each, str)} if isinstance(asked, list) else set()
    return sorted(shown(name) for name in held or named)[:SHOWN_TARGETS]


def _initial_note(scanned: Scanned) -> str:
    return (
        f"{method_title(scanned)} changes the base's own weights. It is added as plain LoRA of "
        f"rank {2 * max(fit.rank for fit in scanned.fits)} with exactly the same effect."
    )


def _is_path(text: str) -> bool:
    return text.startswith(("/", ".", "~")) or "\\" in text or text.count("/") > 1
