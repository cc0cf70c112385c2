"""The format of a workspace, and the steps that convert an older one to the current format.

`workspace.json` holds the format. A workspace without that file is older than the file: it has
format 1, and nothing needs to change. Each step keeps a copy of what it changes in
`before-format-N`.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from backend.errors import Unsupported
from backend.files.atomic_files import disk_error, new_folder, write_text
from backend.settings import VERSION

FILE = "workspace.json"
FORMAT = 1
CONTENT = ("adapters", "runs", "session.json", "queue.json")
"""Files and folders that a used workspace has and a new folder does not."""


class Stamp(BaseModel):
    """The contents of `workspace.json`: the format, and the app version that wrote it last."""

    model_config = ConfigDict(frozen=True)

    format: int
    app_version: str = ""


class Step(NamedTuple):
    """One format change: the new format, a sentence, the changed files, and the function."""

    to: int
    says: str
    changes: tuple[str, ...]
    apply: Callable[[Path], None]


STEPS: tuple[Step, ...] = ()


def open_workspace(
    workspace: Path, *, steps: Sequence[Step] = STEPS, newest: int = FORMAT
) -> list[str]:
    """Convert a workspace to the newest format; returns sentences about what was done.

    Raises Unsupported if a newer version of the app wrote it, and DiskFull if a copy cannot be
    written; then the workspace is unchanged.
    """
    stamp = read(workspace)
    if stamp is not None and stamp.format > newest:
        raise Unsupported(
            f"The workspace {workspace} has format {stamp.format}, written by version "
            f"{stamp.app_version or 'unknown'} of the app. This version ({VERSION}) knows formats "
            f"up to {newest}.",
            cure="Update the app, or name another folder with --workspace.",
        )
    current = 1 if stamp is None else stamp.format
    older = stamp is None and any(_is_used(workspace / name) for name in CONTENT)
    said = []
    for step in steps:
        if step.to > current:
            said.append(_take(step, workspace))
            _write(workspace, step.to)
    if stamp != Stamp(format=newest, app_version=VERSION):
        _write(workspace, newest)
    if older:
        rest = "" if said else " Nothing else changed."
        said.insert(0, f"This workspace comes from an earlier version: {FILE} was added.{rest}")
    return said


def read(workspace: Path) -> Stamp | None:
    """Return the contents of `workspace.json`, None if there is none; raises Unsupported."""
    try:
        return Stamp.model_validate_json((workspace / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise Unsupported(
            f"{workspace / FILE} cannot be read, so the format of this workspace is unknown.",
            cure="Restore it from a copy, or remove it if no newer version of the app was used.",
            details=str(error),
        ) from None


def _is_used(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _take(step: Step, workspace: Path) -> str:
    """Carry out one step; after an error the workspace is as before."""
    kept = workspace / f"before-format-{step.to}"
    if kept.is_dir():  # the last attempt was cut off midway
        _put_back(step, workspace, kept)
    else:
        with new_folder(kept) as folder:
            for name in step.changes:
                _copy(workspace / name, folder / name)
    try:
        step.apply(workspace)
    except BaseException as error:
        _put_back(step, workspace, kept)
        shutil.rmtree(kept)
        if isinstance(error, OSError):
            raise disk_error(error, workspace) from error
        raise
    return f"{step.says} A copy of what was changed is in {kept.name}."


def _put_back(step: Step, workspace: Path, kept: Path) -> None:
    for name in step.changes:
        _remove(workspace / name)
        _copy(kept / name, workspace / name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder, if it exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    elif source.exists():
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(workspace: Path, number: int) -> None:
    stamp = Stamp(format=number, app_version=VERSION)
    write_text(workspace / FILE, stamp.model_dump_json(indent=1))
