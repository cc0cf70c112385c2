"""A time limit for Python code that may never end, such as a foreign chat template.

The code runs in the caller's thread, and a timer raises an exception there. A call into C finishes
first, so this works for loops of Python code. Code that has to be ended in any case needs its own
process.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

from backend.errors import WorkbenchError

Outcome = TypeVar("Outcome")


class _TookTooLong(BaseException):
    """Raised inside the code; not an Exception, so that `except Exception` does not catch it."""


class _Watch:
    """Raises in one thread, at most once, and never after the code has finished."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._over = False
        self._raised = False

    def begin(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._interrupt)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            # Only then: in Python 3.11 the call makes every later function call and loop of the
            # process slower, and a profiler never ends.
            if self._raised:
                self._raise(None)  # cancels an exception that is not raised yet

    def _interrupt(self) -> None:
        with self._lock:
            if not self._over:
                self._raised = True
                self._raise(_TookTooLong)

    def _raise(self, kind: type[BaseException] | None) -> None:
        raised = ctypes.py_object(kind) if kind is not None else None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), raised)


def within(
    seconds: float, call: Callable[[], Outcome], *, error: Callable[[], WorkbenchError]
) -> Outcome:
    """Return what `call` returns; raise `error` where that takes longer.

    This is not a context manager, because an exception raised between its own lines would escape.
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
