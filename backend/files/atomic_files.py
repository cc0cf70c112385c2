"""Writing to disk so that a crash or a full disk leaves the old content or the new, never half."""

import errno
import glob
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backend.errors import DiskFull, InvalidRequest

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
UNHARMED = "What was saved before is unharmed."
REPLACE_AGAIN_S = (0.01, 0.05, 0.2, 0.5) if sys.platform == "win32" else ()
"""How long to wait before each new try to replace a file that another program holds open."""


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step; raises DiskFull."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def make_folder(folder: Path) -> Path:
    """Make a folder where there is none and return it; raises DiskFull."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Give a path to write to that becomes `target`, replacing what was there, if all went well.

    Raises DiskFull where the disk has no room; then `target` is what it was before.
    """
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield partial
        _sync(partial)
        _replace(partial, target)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder to fill that becomes `target`, only if all went well.

    What is there is replaced only with `replace`; an empty folder counts as nothing. Raises
    InvalidRequest where there is something else, before and after filling, and DiskFull where the
    disk has no room; then `target` is what it was before.
    """
    target = target.resolve()  # of a link to an empty folder, the folder is filled
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        if not replace:
            require_free(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        sync_folder(partial)
        if replace:
            _swap(partial, target)
        else:
            _put(partial, target)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_free(target: Path, *, cure: str = "Name a new folder.") -> None:
    """Raise InvalidRequest where something other than an empty folder is in a place."""
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise InvalidRequest(f"{target} exists and is not an empty folder.", cure=cure)


def sync_folder(folder: Path) -> None:
    """Wait until all files of a folder are on the disk: some file systems say only then that it is
    full, and a power cut after a rename may else leave empty files. Raises OSError.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            _sync(file)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that nobody ever sees half of it; one that is not there is no error."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
    with suppress(FileNotFoundError):
        os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_partials(target: Path) -> None:
    """Remove what a process that was killed while it filled `target` left beside it."""
    target = target.resolve()
    for partial in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    """Put a file in the place of another; Windows refuses for as long as that one is open."""
    for seconds in REPLACE_AGAIN_S:
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(seconds)
    return os.replace(source, target)


def _sync(file: Path) -> None:
    # Windows syncs only what is open for writing; elsewhere a copied file may be read-only.
    descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(partial: Path, target: Path) -> None:
    """Put `partial` where nothing is; renaming fails where another one came first."""
    with suppress(OSError):
        target.rmdir()  # an empty folder, which Windows would not replace
    try:
        os.replace(partial, target)
    except OSError:
        require_free(target)
        raise


def _swap(partial: Path, target: Path) -> None:
    """Put `partial` where `target` is, which is moved aside: no call replaces a folder."""
    if not target.exists():
        os.replace(partial, target)
        return
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    os.replace(target, aside)
    try:
        os.replace(partial, target)
    except OSError:
        os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def disk_error(error: OSError, path: Path) -> DiskFull:
    """Say in one sentence why a file could not be written, and what to do."""
    return DiskFull(
        f"Could not write {path.name}: {_reason(error)}.",
        cure=f"{_cure(error)} {UNHARMED}",
        details=f"{path}: {error}",
    )


def _reason(error: OSError) -> str:
    """Return the system's own words; a copied folder has a list of them, one for each file."""
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        return str(error.args[0][0][-1])
    return error.strerror or str(error)


def _cure(error: OSError) -> str:
    if error.errno in NOT_ALLOWED:
        return "Make its folder writable or choose another workspace, then try again."
    if error.errno == errno.ENOTEMPTY:
        return "Something was written there meanwhile: name a new folder."
    return "Free some disk space or choose another workspace, then try again."
