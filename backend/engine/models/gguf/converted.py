"""GGUF files that became folders in the workspace: each once, found again by its path or content.

A folder is named by the file and its digest. `gguf_files.json` beside the folders keeps which path
had which content, so that the next load neither reads the file again nor needs it.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backend.catalogue.packaged_models import PACKAGED_MODELS, is_complete
from backend.engine.core import devices, disk, memory
from backend.engine.core.job_control import Control
from backend.engine.models.gguf import parts, process
from backend.engine.models.gguf.checks import About
from backend.errors import InvalidRequest, ModelError, NotFound
from backend.files import read_limits
from backend.files.atomic_files import new_folder, remove_partials, write_text
from backend.files.foreign_files import open_regular

INDEX = "gguf_files.json"
RECORD = "converted_from.json"
STALE_S = 24 * 3600.0
"""An unfinished folder of this age was left behind; a conversion renews its folder's time."""
BLOCK_BYTES = 1 << 24
PROCESS_BYTES = 800 * 10**6
"""The memory of a process with torch and Transformers, before it reads anything."""
INSTALL = "python3 start.py --with gguf"


def folder_of(files: Sequence[Path], models_dir: Path, control: Control) -> Path:
    """Return the folder of a model in GGUF files; the first call converts them.

    Raises NotFound where `gguf` is not installed or a file is gone, ModelError or Unsupported for
    what cannot be converted, OutOfMemory, DiskFull, Stopped or VerificationFailed; then there is no
    folder.
    """
    models_dir = models_dir.expanduser().resolve()
    if (before := known_folder(files, models_dir)) is not None:
        return before
    files = parts.of_file(files[0])
    about = check(files, control)
    _require_package(about.name)
    digest = digest_of(files, control)
    target = _target(about, digest, models_dir)
    if not is_complete(target):
        convert(files, about, target, _card(about, digest), control)
    _keep(files, models_dir, digest, target)
    return target


def check(files: Sequence[Path], control: Control) -> About:
    """Say what files are, from their headers, read in a process with limits."""
    name = files[0].name
    task = {
        "files": [str(file) for file in files],
        "title": f"Checking {name}",
        "most_bytes": read_limits.GGUF_CHECK_BYTES,
    }
    control.progress(f"Checking {name}", 0.0, force=True)
    found = process.run("gguf-check", task, control, seconds=read_limits.GGUF_CHECK_SECONDS)
    return About(*found)


def digest_of(files: Sequence[Path], control: Control) -> str:
    """Return the SHA-256 of the content of all files; raises Stopped."""
    digest, done = hashlib.sha256(), 0
    total = sum(file.stat().st_size for file in files) or 1
    for file in files:
        with open_regular(file, file.name) as content:
            while block := content.read(BLOCK_BYTES):
                control.check_stop()
                digest.update(block)
                done += len(block)
                control.progress(f"Reading {files[0].name}", 0.1 * done / total)
    return digest.hexdigest()


def convert(
    files: Sequence[Path], about: About, target: Path, readme: str, control: Control
) -> None:
    """Convert checked files into a folder, whole or not at all, in a process of its own."""
    remove_partials(target, older_than_s=STALE_S)
    needed = memory_bytes(about)
    memory.require(needed, devices.CPU, f"Converting {about.name}")
    room = about.folder_bytes + parts.copy_room(files)
    disk.require_free(room, [target.parent], f"Converting {about.name}")
    before = _states(files)
    try:
        with new_folder(target) as folder:
            task = {"files": [str(each) for each in files], "folder": str(folder), "card": readme}
            process.run("gguf-convert", {**task, "title": f"Converting {about.name}"}, control)
            if _states(files) != before:
                raise ModelError(
                    f"{about.name} changed while it was converted.", cure="Load it again."
                )
            record = {"file": about.name, "kind": about.kind}
            (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    except InvalidRequest:  # another app was faster
        if not is_complete(target):
            raise


def memory_bytes(about: About) -> int:
    """Return the memory that a conversion takes: the weights twice, and one tensor in fp32."""
    return PROCESS_BYTES + 2 * about.folder_bytes + 12 * about.vocabulary * about.width


def origin(folder: Path) -> str:
    """Say which file a folder was converted from; empty for other folders."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return f"converted from {record['file']} ({record['kind']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _card(about: About, digest: str) -> str:
    """Return the README of a folder: where its weights come from."""
    for model in PACKAGED_MODELS.values():
        if digest == model.sha256:
            return model.card()
    packed = "" if about.kind in ("F32", "F16", "BF16") else ", unpacked"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {about.name}

Converted by Adapter Workbench from {about.name}, {about.kind}, {about.architecture},
SHA-256 {digest}.

The weights are those of the file{packed} and stored in {about.dtype}. Tokenizer and chat template
are the file's own. Its licence is that of the model.
"""


def _require_package(name: str) -> None:
    if find_spec("gguf") is None:
        raise NotFound(
            f"{name} needs the Python package gguf, which is not installed.",
            cure=f"Install it and start the app with: {INSTALL}",
        )


def _target(about: About, digest: str, models_dir: Path) -> Path:
    """Return where the folder is, or will be; a known model's is that of its package."""
    for model in PACKAGED_MODELS.values():
        if digest == model.sha256:
            return model.folder_in(models_dir)
    for before in sorted(models_dir.glob(f"[!.]*-{digest[:12]}")):  # under another name
        if is_complete(before):
            return before
    stem = re.sub(r"[^\w.-]+", "-", Path(about.name).stem).strip(".-")[:80]
    return models_dir / f"{stem or 'model'}-{digest[:12]}"


def known_folder(files: Sequence[Path], models_dir: Path) -> Path | None:
    """Return the folder that a path was converted to, unless the file has changed since."""
    models_dir = models_dir.expanduser().resolve()
    known = _index(models_dir).get(str(files[0].absolute()))
    if not isinstance(known, dict) or not isinstance(known.get("folder"), str):
        return None
    folder = models_dir / Path(known["folder"]).name
    there = all(os.path.lexists(file) for file in files)
    if not is_complete(folder) or (there and known.get("states") != _states(files)):
        return None
    return folder


def _keep(files: Sequence[Path], models_dir: Path, digest: str, target: Path) -> None:
    entry = {"states": _states(files), "digest": digest, "folder": target.name}
    kept = {**_index(models_dir), str(files[0].absolute()): entry}
    write_text(models_dir / INDEX, json.dumps(kept, indent=1))


def _index(models_dir: Path) -> dict[str, Any]:
    """Return what is known of paths; a damaged file costs only that files are read again."""
    try:
        found = json.loads((models_dir / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _states(files: Sequence[Path]) -> list[list[int]]:
    """Return what changes when a file does: its size, and the time of its last change."""
    return [[found.st_size, found.st_mtime_ns] for found in (file.stat() for file in files)]
