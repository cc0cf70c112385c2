"""Converting an adapter of another kind, or another rank, to plain LoRA, with a measured error.

PiSSA, OLoRA and rsLoRA become plain LoRA exactly. DoRA changes whole weights: its change W' - W is
approximated by a truncated SVD. PEFT 0.21.2's own `convert_to_lora` drops the magnitudes.
"""

import math
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig

from backend import requests as rq
from backend import results as rs
from backend.engine.adapters import saving
from backend.engine.core.job_control import Control
from backend.engine.methods import file_validation, peft_io, plain_lora
from backend.engine.methods.plain_lora import Change, Factors
from backend.engine.models.linear_layers import Target
from backend.engine.session import Session
from backend.errors import InvalidRequest, Unsupported, VerificationFailed
from backend.results import AdapterInfo

CHOSEN_ERROR = 0.05
"""Without a given rank, the smallest rank with at most this error is used."""
EXACT = 1e-5


class _Spectrum(NamedTuple):
    """The SVD of a layer's change: left @ diag(values) @ right, the largest values first.

    left: (outputs, n); values: (n,); right: (n, inputs), float64.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    def cut(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return down, (rank, inputs), and up, (outputs, rank), of the closest change."""
        root = self.values[:rank].sqrt()
        return root[:, None] * self.right[:rank], self.left[:, :rank] * root

    def lost(self, rank: int) -> float:
        """The squared norm of the part that is cut off."""
        return float(self.values[rank:].square().sum())

    @property
    def size(self) -> float:
        return self.lost(0)


def convert(
    session: Session,
    request: rq.ConvertAdapter,
    control: Control,
    *,
    taken: Collection[str] = (),
) -> rs.Converted:
    """Add a plain LoRA copy of an adapter to the library, verified, or change nothing."""
    session.library.require_free(request.new_name, taken)
    source = session.library.get(request.name)
    _require_same_base(session, source)
    folder = session.library.folder(source.id)
    control.progress("Computing the weight changes", force=True)
    scanned = file_validation.scan(folder, session.layers(), name=source.name)
    if scanned.config.target_parameters:
        raise Unsupported(
            f"{source.name!r} changes parameters of experts, which plain LoRA on layers cannot.",
            cure="Use it as it is: it can be switched on, merged and published.",
        )
    changes = plain_lora.changes_of(folder, session.base.model)
    _require_possible(request.rank, changes, session.layers())
    factors, error, per_layer = _approximate(changes, request.rank, control)
    config, tensors = plain_lora.plain(
        factors, session.layers(), session.base.facts.source, rank=request.rank
    )
    info = _describe(session, source, request.new_name, config, tensors, error)
    control.progress("Saving and verifying", 0.95, force=True)
    with tempfile.TemporaryDirectory() as place:
        written = plain_lora.Baked(config, tensors, config.r, error)
        written.write(Path(place))
        difference = _publish(session, info, Path(place))
    return rs.Converted(
        adapter=info.model_copy(update={"max_difference": difference}),
        rank=config.r,
        relative_error=error,
        relative_error_per_layer=per_layer,
    )


def _approximate(
    changes: dict[str, Change], rank: int | None, control: Control
) -> tuple[Factors, float, dict[str, float]]:
    """Return factors of the wanted rank, and their errors, overall and per layer."""
    exact = {n: change.factors for n, change in changes.items() if change.factors is not None}
    largest = max((len(down) for down, _ in exact.values()), default=0)
    if len(exact) == len(changes) and (rank is None or rank >= largest):
        errors = {name: change.error for name, change in changes.items()}
        return exact, max(errors.values()), errors
    spectra = {}
    for number, (name, change) in enumerate(changes.items()):
        control.check_stop()
        control.progress(f"Decomposing {name}", 0.9 * number / len(changes))
        spectra[name] = _take_apart(change)
    rank = rank or _choose(spectra)
    lost = {name: spectrum.lost(rank) for name, spectrum in spectra.items()}
    errors = {n: _ratio(lost[n], spectrum.size) for n, spectrum in spectra.items()}
    overall = _ratio(sum(lost.values()), sum(each.size for each in spectra.values()))
    return {name: each.cut(rank) for name, each in spectra.items()}, overall, errors


def _take_apart(change: Change) -> _Spectrum:
    """Return a change's singular values and vectors, from its factors where it has factors.

    QR of both factors gives a small matrix with the same values, in a thousandth of the time.
    """
    if change.whole is not None:
        return _Spectrum(*torch.linalg.svd(change.whole.double(), full_matrices=False))
    assert change.factors is not None
    down, up = change.factors
    left, left_rest = torch.linalg.qr(up.double())
    right, right_rest = torch.linalg.qr(down.double().T)
    u, values, v = torch.linalg.svd(left_rest @ right_rest.T, full_matrices=False)
    return _Spectrum(left @ u, values, v @ right.T)


def _choose(spectra: dict[str, _Spectrum]) -> int:
    """Return the smallest rank that loses little enough over all layers."""
    allowed = CHOSEN_ERROR**2 * sum(each.size for each in spectra.values())
    longest = max(len(each.values) for each in spectra.values())
    for rank in range(1, longest):
        if sum(each.lost(rank) for each in spectra.values()) <= allowed:
            return rank
    return longest


def _require_possible(rank: int | None, changes: dict[str, Change], layers: list[Target]) -> None:
    """Raise InvalidRequest for a rank that is too large for every layer."""
    largest = max(min(t.inputs, t.outputs) for t in layers if t.name in changes)
    if rank is not None and rank > largest:
        raise InvalidRequest(
            f"Rank {rank} is larger than any of these layers allows ({largest}).",
            cure=f"Choose a rank up to {largest}.",
        )


def _ratio(lost: float, size: float) -> float:
    return math.sqrt(lost / size) if size else 0.0


def _publish(session: Session, info: AdapterInfo, folder: Path) -> float:
    """Load the written plain LoRA copy, compare it bit for bit, and publish it."""
    try:
        session.load_folder(folder, info.id)
        assert session.peft is not None
        if not peft_io.same_weights(session.peft, info.id, folder):
            raise VerificationFailed("The converted adapter reads back differently.")
        return saving.publish(session, info)
    finally:
        session.drop(info.id)


def _describe(
    session: Session,
    source: AdapterInfo,
    name: str,
    config: LoraConfig,
    tensors: dict[str, torch.Tensor],
    error: float,
) -> AdapterInfo:
    how = "exactly" if error < EXACT else f"{error:.1%} away from it"
    facts = session.base.facts
    return AdapterInfo(
        id=session.new_id(),
        name=name,
        colour=session.library.next_colour(beside=[source.colour]),
        method="LoRA",
        rank=config.r,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        base_name=facts.name,
        base_fingerprint=facts.fingerprint,
        created=time.time(),
        data=source.data,
        steps=source.steps,
        chat_template=source.chat_template,
        origin="converted",
        recipe=f"{source.name} ({source.method}) as plain LoRA of rank {config.r}, {how}",
        targets=tuple(sorted(config.target_modules or ())),
    )


def _require_same_base(session: Session, info: AdapterInfo) -> None:
    facts = session.base.facts
    if info.base_fingerprint != facts.fingerprint:
        raise Unsupported(
            f"{info.name!r} was made for the base {info.base_name!r}, but {facts.name!r} is "
            "loaded.",
            cure=f"Load {info.base_name!r} to convert it.",
        )
