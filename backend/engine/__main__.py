"""The worker process: JSON lines in on standard input, replies and events out on standard output.

`python -m backend.engine run FOLDER` starts a process of a run instead (see `run_process.py`).
`python -m backend.engine read` starts a process that only reads files, with less memory.
`gguf-check` and `gguf-convert` do one task on a GGUF file (see `models/gguf/child.py`).

The main thread runs operations one after the other; a reader thread receives control messages
meanwhile. When the input ends, the app has ended, and the worker ends too.
"""

import json
import logging
import os
import sys
import threading
from typing import Any, BinaryIO

import psutil

from backend.settings import Settings

log = logging.getLogger(__name__)
BACKGROUND = psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else 10
"""The priority of a computing process: lower, so that page and browser stay responsive."""


def main(*, reads_only: bool = False) -> None:
    """Serve until the input ends or the `exit` message arrives."""
    psutil.Process().nice(BACKGROUND)
    channel = _claim_stdout()
    first = json.loads(sys.stdin.buffer.readline())
    settings = Settings.model_validate(first["settings"])
    from backend.engine.worker import Engine

    engine = Engine(settings, _Sender(channel), reads_only=reads_only)
    threading.Thread(target=_read, args=(engine,), daemon=True).start()
    engine.emit({"type": "ready", "pid": os.getpid()})
    while (message := engine.inbox.get()) is not None:
        engine.handle(message)


class _Sender:
    """Writes one message per line; safe to call from several threads."""

    def __init__(self, channel: BinaryIO) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def __call__(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._channel.write(json.dumps(message).encode() + b"\n")
            self._channel.flush()


def _claim_stdout() -> BinaryIO:
    """Reserve the real standard output for messages; prints of libraries go to standard error."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return channel


def _read(engine: Any) -> None:
    for line in sys.stdin.buffer:
        try:
            message = json.loads(line)
            if message.get("control") == "exit":
                break
            _take(engine, message)
        except Exception as error:  # this thread has to survive, to notice the end of the app
            log.error("A message from the app could not be handled.", exc_info=error)
    os._exit(0)  # a running operation must not keep the worker alive after the app has ended


def _take(engine: Any, message: dict[str, Any]) -> None:
    if "control" in message:
        engine.control(message)
    else:
        engine.inbox.put(message)


def work_on_gguf(role: str) -> None:
    """Do one task on a GGUF file."""
    channel = _claim_stdout()
    from backend.engine.models.gguf import child

    if role == "gguf-check":
        return child.serve(channel, child.check)
    from backend.engine.models.gguf import conversion

    return child.serve(channel, conversion.run)


if __name__ == "__main__":
    if sys.argv[1:2] in (["gguf-check"], ["gguf-convert"]):
        work_on_gguf(sys.argv[1])
        sys.exit()
    if sys.argv[1:2] == ["run"]:
        from backend.engine import run_process

        sys.exit(run_process.main(sys.argv[2:]))
    main(reads_only=sys.argv[1:2] == ["read"])
