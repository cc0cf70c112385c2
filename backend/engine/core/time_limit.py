"""A limit of time for Python code that may have no end, such as a foreign chat template.

The code runs in the caller's own thread; a timer raises an exception there. A call into C ends
first, so this is for loops of Python code. What must be ended whatever it does needs a process.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

from backend.errors import WorkbenchError

Outcome = TypeVar("Outcome")


class _TookTooLong(BaseException):
    """Raised inside the code; not an Exception, so that no handler there goes on after it."""


class _Watch:
    """Raises in one thread, at most once, and never after the code is over."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._over = False

    def begin(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._interrupt)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            self._raise(None)  # takes back what was not raised yet

    def _interrupt(self) -> None:
        with self._lock:
            if not self._over:
                self._raise(_TookTooLong)

    def _raise(self, kind: type[BaseException] | None) -> None:
        raised = ctypes.py_object(kind) if kind is not None else None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), raised)


def within(
    seconds: float, call: Callable[[], Outcome], *, error: Callable[[], WorkbenchError]
) -> Outcome:
    """Return what `call` returns; raises `error` where that takes longer.

    A function and no context manager: what is raised between one's own lines would escape it.
    """
    watch = _Watch()
    try:
        try:
            watch.begin(seconds)
            return call()
        finally:
            watch.end()
    except _TookTooLong:
        raise error() from None
