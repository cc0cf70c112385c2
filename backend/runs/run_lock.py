"""The right to train a run: a lock on a file in its folder, released when its holder ends.

A process id is not enough: one worker trains many runs one after the other, ids are reused, and if
two apps resume the same run at the same moment, only one may get it. The file's time is updated
while the lock is held, as a heartbeat for other machines, which may not see the lock.
"""

import os
import threading
import weakref
from pathlib import Path

from backend.files.atomic_files import disk_error

try:
    import fcntl
except ImportError:  # Windows: only process ids are available there
    fcntl = None  # type: ignore[assignment]

NAME = "lock"
SIGN_EVERY_S = 10.0
RETRIES, RETRY_S = 20, 0.01
"""A process that checks the lock also holds it for a moment, so taking it is retried."""


class RunLock:
    """The lock of one run in this process; released when the object is no longer used."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self.is_real = False
        """Whether the file system supports locks."""
        self._let_go: weakref.finalize[..., RunLock] | None = None

    @property
    def held(self) -> bool:
        return self._let_go is not None and self._let_go.alive

    def acquire(self) -> bool:
        """Take the lock; False if another process, or another object in this one, has it.

        Raises DiskFull if its file cannot be created.
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
        """Release the lock; does nothing if it is not held."""
        if self._let_go is not None:
            self._let_go()

    def is_taken(self) -> bool | None:
        """Return whether any process has the lock; None if that is unknown."""
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
        """Return the time of the holder's last heartbeat; 0 if there was none."""
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
    """Try to lock an open file; None if the file system has no locks."""
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
    """Return whether an open file still has this name; its run may have been deleted."""
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
            return  # the folder was deleted
        ended.wait(SIGN_EVERY_S)
