"""The lifecycle of adapters: adding, unloading, deleting, restoring, renaming.

Each operation succeeds completely or changes nothing."""

import copy
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from backend.engine.adapters import inspection, saving
from backend.engine.adapters.choice import SHOWN_CHOICES, SeveralAdapters
from backend.engine.adapters.import_sources import (
    Incoming,
    display_name,
    incoming,
    source_below,
)
from backend.engine.adapters.inspection import Place
from backend.engine.adapters.plain_form import plain_form
from backend.engine.adapters.split_experts import require_parameters
from backend.engine.core import memory
from backend.engine.core.job_control import Control
from backend.engine.methods import peft_io, plain_lora
from backend.engine.methods.file_validation import Scanned, scan
from backend.engine.models.linear_layers import Target
from backend.engine.session import Session
from backend.errors import ModelError, NotFound, Unsupported
from backend.library import LIBRARY_SOURCE, Library
from backend.requests import InspectAdapter, LoadAdapter
from backend.results import (
    AdapterInfo,
    AdapterReport,
    LoadedAdapter,
    ModelFacts,
    Removed,
    Renamed,
)

WEIGHED_PARAMETERS = 1_000_000_000
"""Above this, an adapter's change is not compared with the base's weights: it would take long."""


def inspect(
    request: InspectAdapter,
    session: Session,
    control: Control,
    *,
    facts: ModelFacts | None,
    layers: list[Target] | None,
) -> AdapterReport:
    """Report on an adapter before it is added.

    `facts` and `layers` are those of the session's base, which may be in another process.
    """
    changes_of = None
    if session.facts is not None:
        changes_of = partial(plain_lora.changes_of, base_model=session.base.model)
    place = Place(facts, layers, _base_weights(session), changes_of)
    in_library = request.source.startswith(LIBRARY_SOURCE)
    try:
        with incoming(request.source, session.library, control) as found:
            return _inspected(found, place, in_library=in_library)
    except (ModelError, Unsupported) as error:  # a zip that cannot be opened
        path = Path(request.source).expanduser()
        choices = _choices(request.source, error)
        found = Incoming(path, display_name(path.stem), f"the file {path.name}", (), choices)
        return inspection.refused(found, error, facts, in_library=False)


def _choices(source: str, error: Exception) -> tuple[str, ...]:
    """Return the sources of the adapters of which one must be chosen, if that is the reason."""
    if not isinstance(error, SeveralAdapters):
        return ()
    return tuple(source_below(source, home) for home in error.homes[:SHOWN_CHOICES])


def _inspected(found: Incoming, place: Place, *, in_library: bool) -> AdapterReport:
    """Report on an adapter in its plain form, or why it has none."""
    if in_library:
        return inspection.inspect(found, place, in_library=True)
    with ExitStack() as stack:
        try:
            plain = stack.enter_context(plain_form(found, place.facts, place.layers))
        except (ModelError, Unsupported) as error:
            return inspection.refused(found, error, place.facts, in_library=False)
        return inspection.inspect(plain, place, in_library=False)


def add(
    request: LoadAdapter, session: Session, control: Control, reserved: set[str]
) -> LoadedAdapter:
    """Add an adapter to session and library; after a failure both are unchanged.

    An adapter that is already in the library is only loaded.
    """
    started = time.monotonic()
    if request.source.startswith(LIBRARY_SOURCE):
        info = session.library.get(request.source.removeprefix(LIBRARY_SOURCE))
        with session.keeping_active():
            session.ensure_loaded(info)
        return _loaded(info, info.max_difference or 0.0, [], started)
    facts = session.base.facts
    with (
        incoming(request.source, session.library, control) as came,
        plain_form(came, facts, session.layers()) as found,
    ):
        control.progress("Checking the adapter", force=True)
        require_parameters(found.folder, session.layers(), found.name)
        scanned = scan(found.folder, session.layers(), name=found.name)
        notes = [*found.notes, inspection.base_match(found, facts)[1]]
        if (other := inspection.other_template(found, facts)) is not None:
            notes.append(f"{other.what} {other.cure}")
        if scanned.initial:
            scanned, note = _baked(session, found, scanned)
            notes.append(note)
        info = _info(request, found, scanned, session, reserved)
        control.check_stop()
        try:
            with session.keeping_active(), session.library.receive(info) as folder:
                base_name = session.base.model.name_or_path
                peft_io.write_folder(folder, scanned.config, scanned.tensors, base_name)
                session.load_folder(folder, info.id)
                difference = saving.verify(session, info.id, folder)
                info = info.model_copy(update={"max_difference": difference})
                saving.write_card(session, info, folder)
                session.library.write_sidecar(folder, info)
        except BaseException:
            session.drop(info.id)
            raise
    return _loaded(info, difference, [note for note in notes if note], started)


def unload(name: str, session: Session) -> Removed:
    """Unload an adapter from the model; it stays in the library."""
    info = session.library.get(name)
    if not session.is_loaded(info.id):
        raise NotFound(f"{info.name!r} is not loaded.", cure="Turn it on to load it.")
    return _remove(info, session)


def delete(name: str, session: Session) -> Removed:
    """Unload an adapter from the model and move its files to the trash."""
    info = session.library.get(name)
    session.library.discard(info.id)
    return _remove(info, session)


def restore(name: str, session: Session, reserved: set[str]) -> Renamed:
    """Restore a deleted adapter to the library; it is loaded when it is turned on."""
    return Renamed(adapter=session.library.restore(name, reserved))


def rename(name: str, new_name: str, library: Library, reserved: set[str]) -> Renamed:
    """Change an adapter's display name; its internal id, which PEFT uses, stays."""
    info = library.get(name)
    if new_name.casefold() != info.name.casefold():
        library.require_free(new_name, reserved)
    return Renamed(adapter=library.update(info.model_copy(update={"name": new_name})))


def _remove(info: AdapterInfo, session: Session) -> Removed:
    if session.facts is None:
        return Removed(name=info.name, active=[], freed_bytes=0)
    device = session.base.device
    before = memory.resident(device)
    session.drop(info.id)
    freed = max(before - memory.resident(device), 0)
    return Removed(name=info.name, active=session.active, freed_bytes=freed)


def _baked(session: Session, found: Incoming, scanned: Scanned) -> tuple[Scanned, str]:
    """Return a PiSSA or OLoRA adapter as the equal plain LoRA adapter, with a note."""
    config = copy.deepcopy(scanned.config)
    config.init_lora_weights = scanned.initial
    with tempfile.TemporaryDirectory(prefix="adapter-") as place:
        peft_io.write_folder(Path(place), config, scanned.tensors, "")
        baked = plain_lora.bake(Path(place), session.base.model)
    fits = [fit._replace(rank=baked.rank, alpha=baked.rank, scaling=1.0) for fit in scanned.fits]
    note = (
        f"{inspection.method_title(scanned)} changes the base's own weights, so it was converted "
        f"to plain LoRA of rank {baked.rank} with the same effect (error {baked.error:.0e})."
    )
    return Scanned(baked.config, fits, baked.tensors, ""), note


def _info(
    request: LoadAdapter,
    found: Incoming,
    scanned: Scanned,
    session: Session,
    reserved: set[str],
) -> AdapterInfo:
    """Describe an adapter from outside; facts of its own side-car are kept as its origin."""
    facts, library = session.base.facts, session.library
    ours = inspection.sidecar(found)
    wanted = request.name or display_name(ours.name if ours else found.name)
    if request.name:
        library.require_free(wanted, reserved)
    made_of = f", there {ours.recipe}" if ours and ours.recipe else ""
    return AdapterInfo(
        id=session.new_id(),
        name=library.free_name(wanted, reserved),
        colour=library.next_colour(),
        method=inspection.method_title(scanned),
        rank=max(fit.rank for fit in scanned.fits),
        parameters=sum(t.numel() for t in scanned.tensors.values()),
        base_name=facts.name,
        base_fingerprint=facts.fingerprint,
        created=time.time(),
        data=ours.data if ours else "",
        steps=ours.steps if ours else 0,
        evaluation_before=ours.evaluation_before if ours else None,
        evaluation=ours.evaluation if ours else None,
        chat_template=inspection.given_template(found),
        origin="added",
        recipe=f"From {found.origin}{made_of}",
        strength="on-off" if scanned.config.use_dora else "any",
        targets=peft_io.target_titles(scanned.config),
        by_parameter=bool(scanned.config.target_parameters),
    )


def _loaded(
    info: AdapterInfo, difference: float, notes: list[str], started: float
) -> LoadedAdapter:
    return LoadedAdapter(
        adapter=info,
        missing_keys=[],
        unexpected_keys=[],
        max_difference=difference,
        notes=notes,
        seconds=time.monotonic() - started,
    )


def _base_weights(session: Session) -> dict[str, torch.Tensor]:
    """Return the base's own weights by layer, where they are in memory and not too large."""
    if session.facts is None or session.facts.parameters > WEIGHED_PARAMETERS:
        return {}
    return peft_io.base_weights(session.base.model, session.layers())
