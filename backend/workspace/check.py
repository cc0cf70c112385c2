"""Checks whether a workspace can be used: its folders exist as folders and are writable.

Called once at the start, so that a wrong folder gives one sentence and not a traceback.
"""

import os
from contextlib import suppress
from pathlib import Path

from backend.errors import DiskFull, InvalidRequest, WorkbenchError
from backend.files.atomic_files import make_folder, write_text
from backend.settings import Settings

ELSEWHERE = "choose another workspace (--workspace FOLDER)"
LOGS = ("worker.log", "side.log")


def require_usable(settings: Settings) -> None:
    """Create the workspace if it does not exist; raises InvalidRequest or DiskFull."""
    require_folders(settings)
    for name in LOGS:
        _require_file(settings.workspace / name)
    for folder in (settings.workspace, settings.adapters_dir, settings.runs_dir):
        _require_writable(folder, settings.workspace)


def require_folders(settings: Settings) -> None:
    """Raise InvalidRequest if a folder's path is not a folder; enough for reading."""
    for folder in _folders(settings):
        _require_folder(folder)


def _folders(settings: Settings) -> tuple[Path, ...]:
    return (
        settings.workspace,
        settings.adapters_dir,
        settings.runs_dir,
        settings.tokens_dir,
        settings.uploads_dir,
        settings.exports_dir,
        settings.models_dir,
        settings.merged_dir,
        settings.copies_dir,
    )


def _require_folder(folder: Path) -> None:
    """Raise InvalidRequest if a folder's path, or a parent's, exists but is not a folder."""
    for each in (*reversed(folder.absolute().parents), folder.absolute()):
        if os.path.islink(each) and not os.path.exists(each):
            raise InvalidRequest(
                f"{each} is a link to {each.readlink()}, which does not exist.",
                cure=f"Remove the link or {ELSEWHERE}.",
            )
        if os.path.exists(each) and not os.path.isdir(each):
            raise InvalidRequest(
                f"{each} is a file, but a folder is needed there.",
                cure=f"Move the file away or {ELSEWHERE}.",
            )


def _require_file(file: Path) -> None:
    if os.path.exists(file) and not os.path.isfile(file):
        raise InvalidRequest(
            f"{file} is not a file, so the app cannot write its log there.",
            cure=f"Move it away or {ELSEWHERE}.",
        )


def _require_writable(folder: Path, workspace: Path) -> None:
    """Raise DiskFull if no file can be written; trying is more reliable than permissions."""
    trial = folder / ".trial"
    try:
        write_text(make_folder(folder) / trial.name, "This file may be removed.\n")
    except WorkbenchError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.what
        raise DiskFull(
            f"The workspace {workspace} cannot be used: no file can be written in {folder} "
            f"({reason}).",
            cure=f"Make it writable, free some disk space, or {ELSEWHERE}.",
            details=error.details,
        ) from error
    finally:
        with suppress(OSError):  # if nothing could be written, there is nothing to remove
            trial.unlink(missing_ok=True)
