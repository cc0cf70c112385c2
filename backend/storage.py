"""Writing to disk so that a crash leaves the old content or the new, never half of it."""

import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.errors import DiskFull


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(error, path) from error


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes `target`, replacing what was there, only if all went well.

    Raises DiskFull where the disk has no room; then `target` is what it was before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        yield partial
        _swap(partial, target)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(target: Path) -> None:
    """Remove what a process that was killed while it filled `target` left beside it."""
    for partial in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


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
    """Say in one sentence why a file could not be written."""
    return DiskFull(
        f"Could not write {path.name}: {error.strerror or error}.",
        cure="Free some disk space or choose another workspace, then try again. "
        "What was saved before is unharmed.",
        details=f"{path}: {error}",
    )
