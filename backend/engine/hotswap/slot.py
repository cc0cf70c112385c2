"""A prepared slot: its adapters, the active one, and swaps, each of them verified.

A swap whose outputs differ from the adapter's reference outputs is undone. Knows nothing of how the
slot was prepared or of the session around it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from backend import requests as rq
from backend import results as rs
from backend.engine.core import devices
from backend.engine.core.tolerances import require_close
from backend.engine.hotswap import compiling, reference_outputs, slot_proof
from backend.engine.hotswap.slot_layers import Block, SlotMemory
from backend.engine.methods import file_validation, peft_io
from backend.engine.models.linear_layers import Target
from backend.engine.models.loading import Base
from backend.errors import InvalidRequest, NotFound, Unsupported
from backend.library import Library

BASE = ""
"""The name for swapping to the base alone."""
Stamp = tuple[tuple[int, int], ...]


class Entry(NamedTuple):
    """An adapter that can be swapped in; the base has an empty name and id."""

    name: str
    id: str
    block: Block
    reference: list[float]
    """Its reference outputs (`reference_outputs.reference`), computed without compiling."""
    stamp: Stamp


class Slot:
    """Adapters that take turns on a base, one at a time."""

    def __init__(
        self, base: Base, library: Library, memory: SlotMemory, entries: list[Entry]
    ) -> None:
        self.base = base
        self.library = library
        self.memory = memory
        self.current = next(entry for entry in entries if entry.name == BASE)
        self.strength = 1.0
        self.compiled = False
        self.before: list[float] = []
        self.facts = rs.SlotStatus(
            adapters=[entry.name for entry in entries if entry.name != BASE],
            current=BASE,
            rank=memory.rank,
            compiled=False,
            compile_seconds=0.0,
        )
        self._entries = {entry.name.casefold(): entry for entry in entries}
        self._graphs = compiling.graphs()

    def open(self) -> None:
        """Put the slot into the base, with nothing in it."""
        self.memory.put(self.current.block)
        self.memory.install(self.base.model)

    def start_counting(self) -> None:
        """Count recompilations from now on; everything before belongs to the preparation."""
        self._graphs = compiling.graphs()

    def close(self) -> None:
        """Restore the base as it was."""
        if self.compiled:
            compiling.remove(self.base.model)
            self.compiled = False
        self.memory.remove(self.base.model)

    # -- state -----------------------------------------------------------------------------------

    @property
    def recompilations(self) -> int:
        return max(compiling.graphs() - self._graphs, 0) if self.compiled else 0

    @property
    def active(self) -> rq.Variant:
        """The active adapter, as a variant."""
        return [(self.current.name, self.strength)] if self.current.name else []

    def status(self) -> rs.SlotStatus:
        """Describe the slot as it is now."""
        return self.facts.model_copy(
            update={
                "current": self.current.name,
                "compiled": self.compiled,
                "recompilations": self.recompilations,
            }
        )

    # -- swapping --------------------------------------------------------------------------------

    def swap(self, name: str) -> rs.Swapped:
        """Swap to a prepared adapter, or to the base.

        Raises InvalidRequest or NotFound where it was not prepared, ModelError or Unsupported where
        its files have changed, and VerificationFailed where its outputs differ from the reference.
        The slot is then unchanged.
        """
        entry = self._entry(name)
        self._require_unchanged(entry)
        counted, before = self.recompilations, (self.current, self.strength)
        seconds = self._put(entry, 1.0)
        try:
            difference = self._verify(entry)
        except BaseException:
            self._put(*before)
            raise
        self.facts = self.facts.model_copy(
            update={"last_swap_seconds": seconds, "last_difference": difference}
        )
        return rs.Swapped(
            adapter=entry.name,
            seconds=seconds,
            recompilations=self.recompilations - counted,
            max_difference=difference,
        )

    def resolve(self, variant: rq.Variant) -> list[tuple[str, float]]:
        """Return the prepared adapter that a variant names, or the base, with its strength."""
        if len(variant) > 1:
            raise Unsupported(
                f"The hot-swap slot holds one adapter at a time, got {len(variant)}.",
                cure="Choose one of them, or leave the slot first.",
            )
        return [(self._entry(name).id, strength) for name, strength in variant]

    @contextmanager
    def using_ids(self, wanted: list[tuple[str, float]]) -> Iterator[None]:
        """Swap to an adapter if it is not already active; it stays in the slot afterwards."""
        adapter_id, strength = wanted[0] if wanted else (BASE, 1.0)
        entry = next((each for each in self._entries.values() if each.id == adapter_id), None)
        if entry is None:
            raise Unsupported("This adapter is not in the hot-swap slot.", cure="Leave it first.")
        if entry is not self.current:
            self.swap(entry.name)
        if strength != self.strength:
            self._put(entry, strength)
        yield

    def _put(self, entry: Entry, strength: float) -> float:
        started = time.perf_counter()
        self.memory.put(entry.block, strength)
        devices.synchronize(self.base.device)
        seconds = time.perf_counter() - started
        self.current, self.strength = entry, strength
        return seconds

    def _verify(self, entry: Entry) -> float:
        """Verify the slot by its tensors, bit for bit, and by the reference outputs."""
        memory, name = self.memory, entry.name
        parts = {}
        if name != BASE:
            parts = slot_proof.read_file(self.library.folder(entry.id), memory, name=name)
        slot_proof.require_holds(self.base.model, memory, parts, name=name)
        return require_close(
            reference_outputs.reference(self.base.model, self.base),
            entry.reference,
            dtype=self.base.dtype,
            allowed=self.base.bound,
            what=f"{name or 'The base'} was swapped in and compared with its reference outputs",
            cure=slot_proof.CURE,
        )

    def _entry(self, name: str) -> Entry:
        found = self._entries.get(name.strip().casefold())
        if found is not None:
            return found
        known = self.library.get(name)
        raise InvalidRequest(
            f"{known.name!r} is not in the hot-swap slot.",
            cure=f"Prepared: {', '.join(self.facts.adapters)}. Leave the slot first to add it.",
        )

    def _require_unchanged(self, entry: Entry) -> None:
        if entry.name == BASE:
            return
        if self.library.by_id(entry.id) is None:
            raise NotFound(
                f"{entry.name!r} is no longer in the library.",
                cure="Leave the slot, and prepare it without this adapter.",
            )
        folder = self.library.folder(entry.id)
        if stamp(folder) == entry.stamp:
            return
        file_validation.scan(
            folder,
            [Target(n, *s) for n, s in self.memory.shapes.items()],
            name=entry.name,
        )
        raise Unsupported(
            f"The files of {entry.name!r} have changed since the slot was prepared.",
            cure="Leave the slot and prepare it again.",
        )


def stamp(folder: Path) -> Stamp:
    """Return time and size of an adapter's files, to see changes; missing files give zeros."""
    marks = []
    for name in ("adapter_config.json", peft_io.WEIGHTS):
        try:
            status = (folder / name).stat()
            marks.append((status.st_mtime_ns, status.st_size))
        except OSError:
            marks.append((0, 0))
    return tuple(marks)
