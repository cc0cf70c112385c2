"""Preparing and leaving the hot-swap slot; after leaving, the session is proven to be as before.

While a slot is prepared nothing else may change the model: `require_allowed` refuses it. Knows
nothing of how a swap works (`slot.py`).
"""

import filecmp
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from backend import requests as rq
from backend import results as rs
from backend.catalogue import init_methods
from backend.compile_times import CompileTimes
from backend.engine.adapters import saving
from backend.engine.core.job_control import Control
from backend.engine.core.tolerances import require_close
from backend.engine.hotswap import compiling, reference_outputs, slot_proof
from backend.engine.hotswap.slot import BASE, Entry, Slot, Stamp, stamp
from backend.engine.hotswap.slot_layers import Block, Part, SlotMemory, read_parts
from backend.engine.methods import file_validation, peft_io
from backend.engine.session import AdapterSlot, Session
from backend.errors import (
    DiskFull,
    InvalidRequest,
    OutOfMemory,
    Stopped,
    Unsupported,
    VerificationFailed,
)
from backend.files.atomic_files import new_folder

ALLOWED = (
    rq.Hotswap,
    rq.EndHotswap,
    rq.Chat,
    rq.SideBySide,
    rq.Compare,
    rq.Score,
    rq.NextToken,
    rq.SaveAdapter,
    rq.Preflight,
    rq.PreviewData,
    rq.PrepareData,
    rq.DescribeHubData,
    rq.DownloadHubData,
    rq.InspectAdapter,
    rq.Similarity,
    rq.QuantizationTable,
)
"""Operations that the slot serves, and operations that do not change the model."""
STEADY_ROUNDS = 3
COMPILING = (0.2, 0.9)
"""The shares of a preparation at which compiling starts and ends, for the progress."""
log = logging.getLogger(__name__)


def require_allowed(slot: AdapterSlot | None, request: rq.Request) -> None:
    """Raise Unsupported for operations that a prepared slot forbids, or that need a slot."""
    if slot is None and isinstance(request, rq.Hotswap | rq.EndHotswap):
        raise Unsupported("No hot-swap slot is prepared.", cure="Prepare one first.")
    if slot is not None and not isinstance(request, ALLOWED):
        raise Unsupported(
            "The model is in use by the hot-swap slot.", cure="Leave the hot-swap slot first."
        )


def prepare(
    session: Session, request: rq.PrepareHotswap, control: Control, times: CompileTimes
) -> rs.PreparedSlot:
    """Build the slot, compile, and verify each adapter in it; after a failure nothing changes."""
    infos = [session.library.get(name) for name in request.adapters]
    if len({info.id for info in infos}) < len(infos):
        raise InvalidRequest("An adapter is named twice.", cure="Name each one once.")
    for info in infos:
        _require_fit(session, info)
    preparation = _Preparation(session, infos, control, times)
    try:
        return preparation.execute(compile=request.compile)
    except BaseException:
        preparation.undo()
        raise


def prepared(session: Session) -> Slot | None:
    """Return the session's slot; None where there is none."""
    assert session.slot is None or isinstance(session.slot, Slot)
    return session.slot


def leave(session: Session) -> rs.SlotLeft:
    """Remove the slot and verify that the session gives the same answers as before it."""
    slot = prepared(session)
    assert slot is not None
    originals = slot.memory.originals
    slot.close()
    session.slot = None
    session.activate(session.active_ids)
    slot_proof.require_out(session.base.model, originals)
    if irregular := session.status()[1]:
        raise VerificationFailed(irregular, cure="Load the base again.")
    difference = require_close(
        reference_outputs.reference(session.model, session.base),
        slot.before,
        dtype=session.base.dtype,
        allowed=session.base.bound,
        what="The session was compared with its state before the hot-swap",
        cure="Load the base again.",
    )
    return rs.SlotLeft(active=session.active, max_difference=difference)


def save_copy(session: Session, info: rs.AdapterInfo, destination: Path) -> rs.SavedAdapter:
    """Copy an adapter's own files; the padded tensors in the slot are never saved."""
    source = session.library.folder(info.id)
    file_validation.scan(source, session.layers(), name=info.name)
    with new_folder(destination) as folder:
        for path in source.iterdir():
            if (
                path.suffix in (".json", ".safetensors", ".md", ".jinja")
                and path.name != "workbench.json"
            ):
                shutil.copyfile(path, folder / path.name)
                if not filecmp.cmp(path, folder / path.name, shallow=False):
                    raise VerificationFailed(f"The copy of {path.name} differs from the original.")
    return saving.describe_copy(destination, max_difference=0.0)


class _Reading(NamedTuple):
    """An adapter's tensors and reference outputs, from a plain load."""

    info: rs.AdapterInfo
    parts: dict[str, Part]
    reference: list[float]
    stamp: Stamp
    switch_seconds: float
    reload_seconds: float
    tokens_per_second: float


class _Preparation:
    """One preparation, from plain loads to a verified slot."""

    def __init__(
        self,
        session: Session,
        infos: list[rs.AdapterInfo],
        control: Control,
        times: CompileTimes,
    ) -> None:
        self.session = session
        self.base = session.base
        self.infos = infos
        self.control = control
        self.times = times
        self.notes: list[str] = []
        self.recompile_seconds: float | None = None
        self.slot: Slot | None = None

    def execute(self, *, compile: bool) -> rs.PreparedSlot:
        """Do the whole preparation; see `prepare`."""
        session = self.session
        before = reference_outputs.reference(session.model, self.base)
        with session.using_ids([]):
            alone = reference_outputs.reference(session.model, self.base)
        with session.keeping_active():
            readings = [self._read(number, info) for number, info in enumerate(self.infos)]
        slot = self.slot = self._build(readings, alone)
        slot.before = before
        slot.open()
        started = time.monotonic()
        if compile:
            expected = self.times.expected(self.base.facts.layers)
            with compiling.told(self.control, expected, COMPILING):
                self._compile(slot)
        compile_seconds = time.monotonic() - started if slot.compiled else 0.0
        if slot.compiled:
            with suppress(DiskFull):  # only the next time estimate is then wrong
                self.times.note(self.base.facts.layers, compile_seconds)
        graphs = slot.recompilations
        slot.start_counting()
        for number, info in enumerate(self.infos):
            self._tell(f"Proving {info.name}", COMPILING[1] + 0.1 * number / len(self.infos))
            slot.swap(info.name)
        speed = (
            reference_outputs.tokens_per_second(self.base.model, self.base)
            if slot.compiled
            else None
        )
        eager = max(reading.tokens_per_second for reading in readings)
        if speed is not None and speed < eager:
            self.notes.append(
                f"Compiled answers are slower on this machine: {speed:.0f} tokens/s, and "
                f"{eager:.0f} tokens/s without compiling. Prepare the slot without compiling."
            )
        times = self._times(slot, readings)
        slot.swap(self.infos[0].name)
        slot.facts = slot.facts.model_copy(
            update={
                "compile_seconds": compile_seconds,
                "prepared": time.time(),
                "memory_bytes": slot.memory.bytes * (len(readings) + 2),
                "note": " ".join(self.notes),
                "times": times,
                "tokens_per_second_eager": eager,
                "tokens_per_second_compiled": speed,
            }
        )
        session.slot = slot
        return rs.PreparedSlot(
            adapters=slot.facts.adapters,
            rank=slot.memory.rank,
            layers=len(slot.memory.shapes),
            compiled=slot.compiled,
            compile_seconds=compile_seconds,
            memory_bytes=slot.facts.memory_bytes,
            references={reading.info.name: reading.reference[0] for reading in readings},
            graphs=graphs,
            tokens_per_second_eager=eager,
            tokens_per_second_compiled=speed,
            notes=self.notes,
            times=times,
        )

    def undo(self) -> None:
        """Restore the session as it was before."""
        if self.slot is not None:
            self.slot.close()
        self.session.slot = None
        self.session.activate(self.session.active_ids)

    def _tell(self, text: str, fraction: float) -> None:
        self.control.check_stop()
        self.control.progress(text, fraction, force=True)

    def _read(self, number: int, info: rs.AdapterInfo) -> _Reading:
        """Load an adapter plainly from its files, record its reference outputs, unload it."""
        self._tell(f"Reading {info.name}", COMPILING[0] * number / len(self.infos))
        session, reloaded = self.session, self.session.new_id()
        folder = session.library.folder(info.id)
        mark = stamp(folder)
        try:
            started = time.perf_counter()
            session.load_folder(folder, reloaded, plainly=True)
            loaded = time.perf_counter() - started
            started = time.perf_counter()
            with session.using_ids([(reloaded, 1.0)]):
                switched = time.perf_counter() - started
                reference_outputs.first_token_seconds(session.model, self.base)
                first = reference_outputs.first_token_seconds(session.model, self.base)
                reading = _Reading(
                    info,
                    read_parts(self.base.model, reloaded),
                    reference_outputs.reference(session.model, self.base),
                    mark,
                    switch_seconds=switched + first,
                    reload_seconds=loaded + switched + first,
                    tokens_per_second=(
                        reference_outputs.tokens_per_second(session.model, self.base)
                        if not number
                        else 0.0
                    ),
                )
        finally:
            session.drop(reloaded)
        return reading

    def _build(self, readings: list[_Reading], alone: list[float]) -> Slot:
        """Build the slot for the union of all targets and the largest rank."""
        targets = {target.name: target for target in self.session.layers()}
        used = {name for reading in readings for name in reading.parts}
        shapes = {n: (t.inputs, t.outputs) for n, t in targets.items() if n in used}
        every = [part for reading in readings for part in reading.parts.values()]
        rank = max(part.down.shape[0] for part in every)
        memory = SlotMemory(shapes, rank=rank, like=every[0].down)
        entries = [
            Entry(r.info.name, r.info.id, memory.pack(r.parts), r.reference, r.stamp)
            for r in readings
        ]
        empty: Block = memory.pack({})
        entries.append(Entry(BASE, BASE, empty, alone, ()))
        return Slot(self.base, self.session.library, memory, entries)

    def _compile(self, slot: Slot) -> None:
        """Compile and warm up until nothing more is compiled; on failure, add a note instead."""
        obstacle = compiling.obstacle(self.base.device)
        if obstacle:
            self.notes.append(obstacle)
            return
        self.control.check_stop()  # while compiling, a stop is not noticed
        try:
            slot.compiled = True
            compiling.install(self.base.model)
            self.recompile_seconds = reference_outputs.first_token_seconds(
                self.base.model, self.base
            )
            self._warm_up()
            slot_proof.require_compiled_follows(self.base, slot.memory, slot.current.block)
        except (Stopped, OutOfMemory):
            raise
        except Exception as error:
            log.warning("Compiling failed.", exc_info=error)
            slot.close()
            slot.open()
            self.recompile_seconds = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            self.notes.append(f"Compiling failed, so answers are not compiled: {reason}")
            return
        if slot.recompilations == 0:
            raise VerificationFailed(
                "Nothing was compiled, although compiling was requested.",
                cure="Prepare the slot without compiling.",
            )

    def _warm_up(self) -> None:
        for _ in range(STEADY_ROUNDS):
            count = compiling.graphs()
            compiling.warm_up(self.base, self.control.check_stop)
            if compiling.graphs() == count:
                return
        self.notes.append("Some prompt lengths may still need compiling.")

    def _times(self, slot: Slot, readings: list[_Reading]) -> rs.SwapTimes:
        model, base = self.base.model, self.base
        started = time.perf_counter()
        swapped = slot.swap(BASE).seconds
        checked = time.perf_counter() - started - swapped
        reference_outputs.first_token_seconds(model, base)
        return rs.SwapTimes(
            hotswap_seconds=swapped + reference_outputs.first_token_seconds(model, base),
            switch_seconds=min(reading.switch_seconds for reading in readings),
            reload_seconds=min(reading.reload_seconds for reading in readings),
            recompile_seconds=self.recompile_seconds,
            check_seconds=checked,
        )


def _require_fit(session: Session, info: rs.AdapterInfo) -> None:
    """Raise Unsupported, with a hint, where an adapter cannot be in a slot."""
    facts = session.base.facts
    if info.base_fingerprint != facts.fingerprint:
        raise Unsupported(
            f"{info.name!r} was made for the base {info.base_name!r}, but {facts.name!r} is "
            "loaded.",
            cure=f"Load {info.base_name!r} to use it.",
        )
    folder = session.library.folder(info.id)
    file_validation.scan(folder, session.layers(), name=info.name)
    config = peft_io.read_config(folder)
    if config.use_dora:
        what = "is a DoRA adapter, which changes whole weights"
    elif init_methods.changes_the_base(config.init_lora_weights):
        start = init_methods.name_of(config.init_lora_weights)
        what = f"was initialised with {start}, which changes the base itself"
    elif config.target_parameters:
        raise Unsupported(
            f"{info.name!r} changes parameters of experts, which a slot cannot hold.",
            cure="Leave it out of the slot; it can be switched on in the session.",
        )
    elif config.bias != "none" or config.modules_to_save or config.trainable_token_indices:
        what = "is more than plain LoRA"
    else:
        return
    raise Unsupported(
        f"{info.name!r} {what}, so it cannot be in a slot.", cure="Convert it to plain LoRA first."
    )
