"""The adapter library: one plain PEFT folder per adapter, with a side-car of our own.

Folders are named by the internal id, which PEFT sees; people see the display name in the side-car.
"""

import re
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path

from backend.errors import InvalidRequest, NotFound
from backend.results import AdapterInfo
from backend.storage import write_text

SIDECAR = "workbench.json"

# Okabe and Ito's palette, told apart by people with any kind of colour vision. Grey is the base's.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442")
BASE_COLOUR = "#8A8F98"


def new_adapter_id() -> str:
    """Return an internal id: safe for PEFT, where names that are module names break things."""
    return f"ad_{uuid.uuid4().hex[:6]}"


class Library:
    """All adapters of a workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[Path, tuple[int, AdapterInfo]] = {}

    def folder(self, adapter_id: str) -> Path:
        """Return where the adapter with this id lives."""
        return self.root / adapter_id

    def all(self) -> list[AdapterInfo]:
        """Return all adapters, oldest first."""
        found = (self._info(path) for path in self.root.glob(f"ad_*/{SIDECAR}"))
        return sorted((info for info in found if info), key=lambda info: info.created)

    def get(self, name: str) -> AdapterInfo:
        """Return the adapter with this display name; raises NotFound."""
        adapters = self.all()
        for info in adapters:
            if info.name.casefold() == name.strip().casefold():
                return info
        known = ", ".join(info.name for info in adapters) or "none yet"
        raise NotFound(f"There is no adapter called {name!r}.", cure=f"Adapters: {known}.")

    def free_name(self, wanted: str, taken: Collection[str] = ()) -> str:
        """Return `wanted`, or `wanted 2`, `wanted 3`... where it is taken."""
        used = {info.name.casefold() for info in self.all()} | {n.casefold() for n in taken}
        if wanted.casefold() not in used:
            return wanted
        stem = re.sub(r" \d+$", "", wanted)[:36]
        number = 2
        while f"{stem} {number}".casefold() in used:
            number += 1
        return f"{stem} {number}"

    def require_free(self, name: str, taken: Collection[str] = ()) -> None:
        """Raise InvalidRequest where an adapter of this name exists."""
        free = self.free_name(name, taken)
        if free != name:
            raise InvalidRequest(
                f"There is already an adapter called {name!r}.", cure=f"{free!r} is free."
            )

    def next_colour(self) -> str:
        """Return the colour that fewest adapters have."""
        used = [info.colour for info in self.all()]
        return min(COLOURS, key=used.count)

    def write_sidecar(self, folder: Path, info: AdapterInfo) -> None:
        """Put the side-car into an adapter's folder."""
        write_text(folder / SIDECAR, info.model_dump_json(indent=1))

    def delete(self, adapter_id: str) -> None:
        """Remove an adapter's folder."""
        shutil.rmtree(self.folder(adapter_id), ignore_errors=True)

    def _info(self, path: Path) -> AdapterInfo | None:
        try:
            changed = path.stat().st_mtime_ns
            known = self._read.get(path)
            if known is None or known[0] != changed:
                text = path.read_text(encoding="utf-8")
                known = self._read[path] = (changed, AdapterInfo.model_validate_json(text))
        except (OSError, ValueError):
            return None
        return known[1] if known[1].id == path.parent.name else None
