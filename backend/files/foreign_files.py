"""Reading files from outside, so that none can hang the app or fill the memory.

Opening a FIFO waits for a writer, a device may never end, and a file can grow while it is read. So
only regular files are opened, they are read only up to their size when opened, and whole files only
up to a limit. `error` is the class that is raised otherwise.
"""

import json
import os
import stat
from io import BufferedReader, FileIO, RawIOBase
from pathlib import Path
from typing import Any

from backend.errors import ModelError, WorkbenchError
from backend.sizes import size_text

BUFFER_BYTES = 1 << 17
NOT_FILES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_regular(path: Path, name: str, error: type[WorkbenchError] = ModelError) -> None:
    """Raise if a path is not a regular file; OSError if it does not exist."""
    _require_regular(path.stat().st_mode, name, error)


def require_size(
    path: Path, most: int, name: str, error: type[WorkbenchError] = ModelError
) -> None:
    """Raise if a path is not a regular file or too large; OSError if it does not exist."""
    found = path.stat()
    _require_regular(found.st_mode, name, error)
    if found.st_size > most:
        raise error(
            f"{name} has {size_text(found.st_size)}, and at most {size_text(most)} are read.",
            cure="Check that it is the file you mean, and get it again.",
        )


def open_regular(path: Path, name: str, error: type[WorkbenchError] = ModelError) -> BufferedReader:
    """Open a regular file for reading bytes; OSError if it does not exist."""
    require_regular(path, name, error)
    # The path may have changed since. Without O_NONBLOCK the call would block on a FIFO.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _require_regular(os.fstat(handle).st_mode, name, error)
    except BaseException:
        os.close(handle)
        raise
    return BufferedReader(_AsItWas(handle), BUFFER_BYTES)


def read_bytes(path: Path, most: int, name: str, error: type[WorkbenchError] = ModelError) -> bytes:
    """Read a whole file."""
    require_size(path, most, name, error)
    with open_regular(path, name, error) as file:
        return file.read(most)


def read_text(path: Path, most: int, name: str, error: type[WorkbenchError] = ModelError) -> str:
    """Read a whole text file; ValueError if it is not UTF-8."""
    return read_bytes(path, most, name, error).decode("utf-8")


def read_json(path: Path, most: int, name: str, error: type[WorkbenchError] = ModelError) -> Any:
    """Read a whole JSON file; ValueError or RecursionError if it is not valid."""
    return json.loads(read_text(path, most, name, error))


class _AsItWas(RawIOBase):
    """A file's bytes, up to its size when it was opened."""

    def __init__(self, handle: int) -> None:
        self._file = FileIO(handle)
        self._size = os.fstat(handle).st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        left = max(0, self._size - self._file.tell())
        return self._file.readinto(memoryview(buffer)[:left]) or 0

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()


def _require_regular(mode: int, name: str, error: type[WorkbenchError]) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((kind for is_kind, kind in NOT_FILES if is_kind(mode)), "something else")
    raise error(f"{name} is {kind}, not a file.", cure="Put the file itself in its place.")
