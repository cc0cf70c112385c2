"""Atomic writes: after a crash or on a full disk, a file has its old or its new content."""

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
UNHARMED = "What was saved before is unchanged."
REPLACE_AGAIN_S = (0.01, 0.05, 0.2, 0.5) if sys.platform == "win32" else ()
"""Waiting times before each retry to replace a file that another program has open."""


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically; raises DiskFull."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def make_folder(folder: Path) -> Path:
    """Create a folder if it does not exist, and return it; raises DiskFull."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it replaces `target`.

    Raises DiskFull if the disk is full; then `target` is unchanged.
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
    """Yield a folder to fill; on success it becomes `target`.

    An existing folder is replaced only with `replace`, or if it is empty. Otherwise raises
    InvalidRequest, before or after filling. Raises DiskFull if the disk is full. After an error
    `target` is unchanged.
    """
    target = target.resolve()  # if it is a link to an empty folder, that folder is filled
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
    """Raise InvalidRequest if a path exists and is not an empty folder."""
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise InvalidRequest(f"{target} exists and is not an empty folder.", cure=cure)


def sync_folder(folder: Path) -> None:
    """Wait until all files of a folder are on disk; raises OSError.

    Some file systems report only then that the disk is full. Without it, a power cut after a rename
    may leave empty files.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            _sync(file)


def remove_folder(folder: Path) -> None:
    """Remove a folder in one step for other readers; a missing folder is not an error."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
    with suppress(FileNotFoundError):
        os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_partials(target: Path, *, older_than_s: float = 0.0) -> None:
    """Remove partial folders that a killed process left beside `target`.

    With `older_than_s`, those that another process may still be filling are kept.
    """
    target = target.resolve()
    for partial in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime >= older_than_s:
                shutil.rmtree(partial, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    """Replace a file by another; on Windows this fails as long as the old one is open."""
    for seconds in REPLACE_AGAIN_S:
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(seconds)
    return os.replace(source, target)


def _sync(file: Path) -> None:
    # Windows syncs only files open for writing; elsewhere a copied file may be read-only.
    descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(partial: Path, target: Path) -> None:
    """Rename `partial` to a free path; fails if another process was faster."""
    with suppress(OSError):
        target.rmdir()  # an empty folder, which Windows would not replace
    try:
        os.replace(partial, target)
    except OSError:
        require_free(target)
        raise


def _swap(partial: Path, target: Path) -> None:
    """Replace `target` by `partial`. The old one is renamed first: no call replaces a folder."""
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
    """Return the error for a file that could not be written, with its reason and a hint."""
    return DiskFull(
        f"Could not write {path.name}: {_reason(error)}.",
        cure=f"{_cure(error)} {UNHARMED}",
        details=f"{path}: {error}",
    )


def _reason(error: OSError) -> str:
    """Return the system's own message; `shutil.copytree` has a list of them, one per file."""
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        return str(error.args[0][0][-1])
    return error.strerror or str(error)


def _cure(error: OSError) -> str:
    if error.errno in NOT_ALLOWED:
        return "Make its folder writable or choose another workspace, then try again."
    if error.errno == errno.ENOTEMPTY:
        return "Something else was written there meanwhile. Choose a new folder."
    return "Free some disk space or choose another workspace, then try again."
