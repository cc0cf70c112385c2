"""The adapter library: one plain PEFT folder per adapter, with our own side-car file.

Folders are named by the internal id, which PEFT uses; the side-car holds the display name. A
deleted adapter stays in the trash until the app that deleted it closes. Knows no tensors.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from backend.errors import Damaged, InvalidRequest, NotFound
from backend.files import damaged_files
from backend.files.atomic_files import (
    disk_error,
    make_folder,
    new_file,
    new_folder,
    require_free,
    write_text,
)
from backend.results import AdapterInfo, DamagedAdapter

SIDECAR = "workbench.json"
WEIGHT_FILES = ("adapter_config.json", "adapter_model.safetensors")
LIBRARY_SOURCE = "library:"
"""`library:pirate` names an adapter of the library in a field that also takes a folder or id."""
TRASH = ".trash"
ID_DIGITS = 16
"""Hexadecimal digits of a new id; those of older versions have 6 and stay as they are."""
BASE = "base"
"""The name of the model without adapters; no adapter may have it."""

# The palette of Okabe and Ito, which suits every kind of colour vision. The base is grey.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442")
BASE_COLOUR = "#8A8F98"


def new_adapter_id() -> str:
    """Return an internal id. It is safe for PEFT, which fails if a name is also a module name."""
    return f"ad_{uuid.uuid4().hex[:ID_DIGITS]}"


class Library:
    """All adapters of a workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[Path, tuple[int, AdapterInfo]] = {}

    def new_id(self, taken: Collection[str] = ()) -> str:
        """Return an id that no adapter has, deleted ones included, and that is not in `taken`."""
        while True:
            drawn = new_adapter_id()
            places = (self.folder(drawn), self.root / TRASH / drawn)
            if drawn not in taken and not any(map(os.path.lexists, places)):
                return drawn

    def folder(self, adapter_id: str) -> Path:
        """Return the folder of the adapter with this id."""
        return self.root / adapter_id

    def all(self) -> list[AdapterInfo]:
        """Return all adapters, oldest first."""
        return self._in(self.root)

    def deleted(self) -> list[AdapterInfo]:
        """Return the adapters that can still be restored, oldest first."""
        return self._in(self.root / TRASH)

    def damaged(self) -> list[DamagedAdapter]:
        """Return the adapters whose side-car cannot be read; they are listed, not hidden."""
        folders = (each for each in self.root.glob("ad_*") if each.is_dir())
        return [self._damaged(each) for each in sorted(folders) if not self._info(each / SIDECAR)]

    def trashed(self) -> set[str]:
        """Return the ids of all adapters in the trash, readable or not."""
        return {each.name for each in (self.root / TRASH).glob("ad_*")}

    def by_id(self, adapter_id: str) -> AdapterInfo | None:
        """Return the adapter with this internal id, if the library has it."""
        return self._info(self.folder(adapter_id) / SIDECAR)

    def get(self, name: str) -> AdapterInfo:
        """Return the adapter with this display name; raises NotFound."""
        adapters = self.all()
        found = _named(name, adapters)
        if found is not None:
            return found
        known = ", ".join(info.name for info in adapters) or "none yet"
        raise NotFound(f"There is no adapter called {name!r}.", cure=f"Adapters: {known}.")

    def free_name(self, wanted: str, taken: Collection[str] = ()) -> str:
        """Return `wanted`, or `wanted 2`, `wanted 3`... if it is taken."""
        used = {info.name.casefold() for info in self.all()} | {n.casefold() for n in taken}
        used.add(BASE)
        if wanted.casefold() not in used:
            return wanted
        stem = re.sub(r" \d+$", "", wanted)[:36]
        number = 2
        while f"{stem} {number}".casefold() in used:
            number += 1
        return f"{stem} {number}"

    def require_free(self, name: str, taken: Collection[str] = ()) -> None:
        """Raise InvalidRequest if an adapter of this name exists."""
        free = self.free_name(name, taken)
        if name.casefold() == BASE:
            raise InvalidRequest(
                "The name base is reserved for the model without adapters.",
                cure=f"{free!r} is free.",
            )
        if free != name:
            there = _named(name, self.all())  # in its own capitals
            raise InvalidRequest(
                f"There is already an adapter called {there.name if there else name!r}.",
                cure=f"{free!r} is free.",
            )

    def next_colour(self, beside: Collection[str] = ()) -> str:
        """Return the least used colour; among equals, one that is not in `beside`.

        A blend is shown beside its ingredients, and a converted adapter beside its original.
        """
        used = [info.colour for info in self.all()]
        return min(COLOURS, key=lambda colour: (used.count(colour), colour in beside))

    def write_sidecar(self, folder: Path, info: AdapterInfo) -> None:
        """Write the side-car into an adapter's folder."""
        write_text(folder / SIDECAR, info.model_dump_json(indent=1))

    @contextmanager
    def receive(self, info: AdapterInfo) -> Iterator[Path]:
        """Yield a folder to fill; on success it becomes this adapter's folder, with its side-car.

        Only a later state of a run's own adapter replaces an existing folder: see `require_place`.
        """
        replaces = self.require_place(info.id, info.run_id)
        with new_folder(self.folder(info.id), replace=replaces) as folder:
            self.write_sidecar(folder, info)
            yield folder

    def require_place(self, adapter_id: str, run_id: str | None) -> bool:
        """Return whether a run's own adapter is there already; raises InvalidRequest for any other.

        A folder whose side-car cannot be read may belong to another adapter.
        """
        there = self.by_id(adapter_id)
        if there is not None and there.run_id is not None and there.run_id == run_id:
            return True
        require_free(self.folder(adapter_id), cure="Move it away, then try again.")
        return False

    def update(self, info: AdapterInfo) -> AdapterInfo:
        """Write the changed side-car of an adapter."""
        self.write_sidecar(self.folder(info.id), info)
        return info

    def lora_settings(self, adapter_id: str) -> dict[str, Any]:
        """Return the rank, alpha and kind of an adapter, from its file; raises Damaged."""
        return damaged_files.read(self.folder(adapter_id) / "adapter_config.json", _lora_settings)

    def discard(self, adapter_id: str) -> None:
        """Move an adapter's folder to the trash; raises DiskFull if that fails."""
        target = self.root / TRASH / adapter_id
        make_folder(target.parent)
        shutil.rmtree(target, ignore_errors=True)
        try:
            self.folder(adapter_id).replace(target)
        except OSError as error:
            raise disk_error(error, target) from error

    def discard_damaged(self, adapter_id: str) -> None:
        """Move an adapter whose side-car cannot be read to the trash; raises NotFound, DiskFull."""
        if adapter_id not in {each.id for each in self.damaged()}:
            raise NotFound("There is no such damaged adapter.", cure="Check Load again.")
        self.discard(adapter_id)

    def restore(self, name: str, taken: Collection[str] = ()) -> AdapterInfo:
        """Restore the last deleted adapter of this name, under a free name."""
        info = self.last_deleted(name)
        if self.by_id(info.id) is not None:
            raise InvalidRequest(
                f"{info.name!r} exists again: its run continued after it was deleted.",
                cure="The deleted one is an older state. It is removed when the app closes.",
            )
        free = self.free_name(info.name, taken)
        try:
            (self.root / TRASH / info.id).replace(self.folder(info.id))
        except OSError as error:
            raise disk_error(error, self.folder(info.id)) from error
        return info if free == info.name else self.update(info.model_copy(update={"name": free}))

    def last_deleted(self, name: str) -> AdapterInfo:
        """Return the last deleted adapter of this name; raises NotFound."""
        wanted = name.strip().casefold()
        found = [info for info in self.deleted() if info.name.casefold() == wanted]
        if not found:
            raise NotFound(
                f"There is no deleted adapter called {name!r}.",
                cure="Deleted adapters can be restored until the app closes.",
            )
        return max(found, key=lambda each: self._moved(each.id))

    def purge(self, adapter_ids: Collection[str]) -> None:
        """Remove deleted adapters permanently."""
        for adapter_id in adapter_ids:
            shutil.rmtree(self.root / TRASH / adapter_id, ignore_errors=True)

    def pack(self, adapter_id: str, folder: Path) -> Path:
        """Write an adapter as a zip into a folder and return it: a plain PEFT folder inside."""
        info = self.by_id(adapter_id)
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", info.name) if info else adapter_id
        target, source = make_folder(folder) / f"{name}.zip", self.folder(adapter_id)
        with new_file(target) as partial, ZipFile(partial, "w", ZIP_DEFLATED) as archive:
            for file in sorted(source.rglob("*")):
                archive.write(file, file.relative_to(source))
        return target

    def _damaged(self, folder: Path) -> DamagedAdapter:
        try:
            info = damaged_files.read(folder / SIDECAR, AdapterInfo.model_validate_json)
            what = f"{SIDECAR} belongs to another adapter, {info.id}."
        except Damaged as error:
            what = error.what
        whole = all((folder / name).is_file() for name in WEIGHT_FILES)
        cure = "Add it again from its folder, then delete it here." if whole else "Delete it."
        return DamagedAdapter(id=folder.name, folder=str(folder), what=what, cure=cure)

    def _moved(self, adapter_id: str) -> float:
        return (self.root / TRASH / adapter_id).stat().st_ctime

    def _in(self, root: Path) -> list[AdapterInfo]:
        found = (self._info(path) for path in root.glob(f"ad_*/{SIDECAR}"))
        return sorted((info for info in found if info), key=lambda info: info.created)

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


def _lora_settings(content: bytes) -> dict[str, Any]:
    config = json.loads(content)
    return {
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
    }


def _named(name: str, adapters: list[AdapterInfo]) -> AdapterInfo | None:
    wanted = name.strip().casefold()
    return next((info for info in adapters if info.name.casefold() == wanted), None)
