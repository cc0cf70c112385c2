"""Which folders a user may write to: never those that the app itself needs.

A merge, a copy of an adapter and an exported run are written to a new folder. Inside the workspace
only the folders meant for them are allowed. This applies to every caller, including Python and the
command line.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from backend.errors import InvalidRequest
from backend.settings import PROJECT, Settings

LONGEST_NAME = 255
"""Longest name in bytes that the usual file systems allow."""
BASE_FOLDER = "the base's own folder"


def require_destination(destination: Path, settings: Settings, base: Path | None) -> None:
    """Raise InvalidRequest if writing there would damage the app, its workspace or the base."""
    path = destination.expanduser().absolute()
    _require_name(path)
    if path.is_symlink() and not path.exists():
        raise InvalidRequest(
            f"{destination} is a link to {path.readlink()}, which does not exist.",
            cure="Name a new folder.",
        )
    real = path.resolve()
    cure = f"Name a new folder in {settings.merged_dir}."
    if base is not None:
        require_outside(real, base, BASE_FOLDER, cure=cure)
    if any(_is_inside(real, folder) for folder in _open_to_writing(settings)):
        return
    for folder, what in _protected(settings):
        require_outside(real, folder, what, cure=cure)


def _require_name(path: Path) -> None:
    """Raise InvalidRequest if a part of the path is empty or too long for a file system."""
    if not path.name.strip():
        raise InvalidRequest("The name of the folder is empty.", cure="Name a new folder.")
    if longest := max((part for part in path.parts if _bytes(part) > LONGEST_NAME), default=""):
        raise InvalidRequest(
            f"The name {longest[:20]}... has {_bytes(longest)} bytes, but at most {LONGEST_NAME} "
            "are possible.",
            cure="Choose a shorter name.",
        )


def _bytes(name: str) -> int:
    return len(os.fsencode(name))


def require_outside(destination: Path, folder: Path, what: str, *, cure: str) -> None:
    """Raise InvalidRequest if a destination is inside a folder or contains it."""
    real, place = _real(destination), _real(folder)
    if _same(real, place):
        raise InvalidRequest(f"{destination} is {what}.", cure=cure)
    if _is_inside(real, place):
        raise InvalidRequest(f"{destination} is inside {what}.", cure=cure)
    if _is_inside(place, real):
        raise InvalidRequest(f"{destination} contains {what}.", cure=cure)


def _open_to_writing(settings: Settings) -> Iterator[Path]:
    """Yield the folders of a workspace for merges, copies and exports."""
    for folder in (settings.merged_dir, settings.copies_dir, settings.exports_dir):
        yield _real(folder)


def _protected(settings: Settings) -> Iterator[tuple[Path, str]]:
    """Yield the folders that must not be written to, each with its name for an error."""
    yield settings.workspace, "the workspace"
    yield settings.adapters_dir, "the adapter library"  # may be a link to another disk, as others
    yield settings.runs_dir, "the runs"
    yield settings.tokens_dir, "the kept tokens"
    yield settings.models_dir, "the converted models"
    yield settings.uploads_dir, "the uploads"
    yield PROJECT, "the app's own folder"


def _real(folder: Path) -> Path:
    return folder.expanduser().resolve()


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is below a folder, even if the file system ignores case."""
    return any(_same(parent, folder) for parent in path.parents)


def _same(one: Path, other: Path) -> bool:
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False
