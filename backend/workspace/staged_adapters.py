"""Adapters of an unpacked export, before they are added to the library: checks and free names.

The engine checks every adapter again when it loads it. Here only the requirements for a folder of
the library are checked.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from backend.errors import ModelError
from backend.fields import DISPLAY_NAME
from backend.files.safetensors_header import read_header
from backend.library import COLOURS, SIDECAR, TRASH, Library, new_adapter_id
from backend.results import AdapterInfo
from backend.workspace.archive import MOST_TEXT_BYTES, Entry, digest_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SAME = (WEIGHTS, CONFIG)
"""The files that identify an adapter; its name and card may have changed since."""
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,200}")


class Staged(NamedTuple):
    """An adapter of the export in its staged folder."""

    folder: Path
    info: AdapterInfo


def read(folder: Path) -> Staged:
    """Read a staged adapter; raises ModelError if it is not valid for a library."""
    for name in (*SAME, SIDECAR):
        if not (folder / name).is_file():
            raise ModelError(f"it has no {name}")
    try:
        info = AdapterInfo.model_validate_json(_text(folder / SIDECAR))
        config = json.loads(_text(folder / CONFIG))
    except (ValueError, RecursionError):
        raise ModelError("its settings cannot be read") from None
    if info.id != folder.name or not DISPLAY_NAME.fullmatch(info.name):
        raise ModelError("its name is not allowed for an adapter")
    if not isinstance(config, dict) or not _is_plain(config):
        raise ModelError(f"its {CONFIG} is not in the library's format")
    read_header(folder / WEIGHTS)
    return Staged(folder, info)


def _text(file: Path) -> str:
    if file.stat().st_size > MOST_TEXT_BYTES:
        raise ValueError("too large")
    return file.read_text(encoding="utf-8")


def _is_plain(config: dict[str, Any]) -> bool:
    """Return whether PEFT can read the configuration without evaluating an expression or code."""
    targets, start = config.get("target_modules"), config.get("init_lora_weights", True)
    return (
        isinstance(targets, list)
        and all(isinstance(each, str) and _PLAIN.fullmatch(each) for each in targets)
        and isinstance(start, bool | None)
        and not any(config.get(name) for name in ("auto_mapping", "megatron_config"))
    )


class KnownAdapters:
    """Finds an adapter of the library by its content; each file is read at most once."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._digests: dict[Path, Entry] = {}

    def find(self, entries: dict[str, Entry]) -> AdapterInfo | None:
        """Return the adapter of the library with the same weights and configuration, if any."""
        return next((info for info in self._library.all() if self._is_same(info, entries)), None)

    def _is_same(self, info: AdapterInfo, entries: dict[str, Entry]) -> bool:
        folder = self._library.folder(info.id)
        return all(self._has(folder / name, entries[name]) for name in SAME)

    def _has(self, file: Path, entry: Entry) -> bool:
        if not file.is_file() or file.stat().st_size != entry.bytes:
            return False
        if file not in self._digests:
            self._digests[file] = digest_of(file)
        return self._digests[file] == entry


def rename(info: AdapterInfo, library: Library, taken: set[str]) -> AdapterInfo:
    """Return an adapter with an id, a name and a colour that are valid in this library."""
    is_used = library.folder(info.id).exists() or (library.root / TRASH / info.id).exists()
    return info.model_copy(
        update={
            "id": new_adapter_id() if is_used else info.id,
            "name": library.free_name(info.name, taken),
            "colour": info.colour if info.colour in COLOURS else library.next_colour(),
        }
    )


def folders(staging: Path) -> Iterator[Path]:
    """Yield the folders of the staged adapters."""
    yield from sorted((staging / "adapters").glob("ad_*"))
