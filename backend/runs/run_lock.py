"""The right to train a run: a lock on a file in its folder, which ends with its holder.

A process number says too little: one worker trains many runs one after the other, numbers are used
again, and of two apps that resume the same run at the same moment only one may get it. The file's
time is renewed while the lock is held, as a sign of life for other machines, whose locks may not
reach here.
"""

import os
import threading
import weakref
from pathlib import Path

from backend.files.atomic_files import disk_error

try:
    import fcntl
except ImportError:  # Windows: process numbers alone must do there
    fcntl = None  # type: ignore[assignment]

NAME = "lock"
SIGN_EVERY_S = 10.0
RETRIES, RETRY_S = 20, 0.01
"""Whoever looks whether a run is locked holds the lock for a moment, too."""


class RunLock:
    """One run's lock, as this process sees it; let go when nobody refers to it any more."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self.is_real = False
        """Whether the file system keeps the lock while it is held."""
        self._let_go: weakref.finalize[..., RunLock] | None = None

    @property
    def held(self) -> bool:
        return self._let_go is not None and self._let_go.alive

    def acquire(self) -> bool:
        """Take the lock; False where another process, or another part of this one, has it.

        Raises DiskFull where its file cannot be made.
        """
        if self.held:
            return True
        try:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise disk_error(error, self.file) from error
        locked = _try_often(descriptor)
        if locked is False or not _is_still(self.file, descriptor):
            os.close(descriptor)
            return False
        self.is_real = locked is True
        ended = threading.Event()
        self._let_go = weakref.finalize(self, _release, descriptor, ended)
        signs = threading.Thread(
            target=_give_signs, args=(self.file, ended), name="run-lock", daemon=True
        )
        signs.start()
        return True

    def release(self) -> None:
        """Let go of the lock; one that is not held is no error."""
        if self._let_go is not None:
            self._let_go()

    def is_taken(self) -> bool | None:
        """Tell whether anybody has the lock; None where that cannot be told."""
        if self.held:
            return True
        try:
            descriptor = os.open(self.file, os.O_RDONLY)
        except OSError:
            return None
        try:
            free = _try(descriptor, shared=True)
            return None if free is None else not free
        finally:
            os.close(descriptor)

    def last_sign(self) -> float:
        """Return when its holder last gave a sign of life; 0 where it never did."""
        try:
            return self.file.stat().st_mtime
        except OSError:
            return 0.0


def _try_often(descriptor: int) -> bool | None:
    for _ in range(RETRIES):
        locked = _try(descriptor)
        if locked is not False:
            return locked
        threading.Event().wait(RETRY_S)
    return False


def _try(descriptor: int, *, shared: bool = False) -> bool | None:
    """Try to lock an open file; None where the file system knows no locks."""
    if fcntl is None:
        return None
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems refuse
        return None
    return True


def _is_still(file: Path, descriptor: int) -> bool:
    """Tell whether an open file is still the one of this name: its run may have been deleted."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


def _release(descriptor: int, ended: threading.Event) -> None:
    ended.set()
    os.close(descriptor)


def _give_signs(file: Path, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            os.utime(file)
        except OSError:
            return  # the folder is gone
        ended.wait(SIGN_EVERY_S)
