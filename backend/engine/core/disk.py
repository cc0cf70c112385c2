"""The free space of disks, and a download that does not fit is refused before it begins."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from backend.errors import DiskFull
from backend.sizes import size_text


def free(folders: Iterable[Path]) -> int:
    """Return the free bytes on the fullest disk of some folders, which need not exist yet."""
    return min(shutil.disk_usage(_there(folder)).free for folder in folders)


def require_free(needed: int, folders: Iterable[Path], what: str) -> None:
    """Raise DiskFull where a download and what is made of it do not fit."""
    there = free(folders)
    if needed > there:
        raise DiskFull(
            f"{what} needs about {size_text(needed)} of disk space, but only {size_text(there)} "
            "are free.",
            cure="Free some disk space, or set HF_HOME to a folder on another disk.",
        )


def _there(folder: Path) -> Path:
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())
