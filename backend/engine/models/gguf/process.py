"""Work on a GGUF file in a process of its own, which has limits and can be ended at any time.

The worker holds the session's model, so neither the memory of a conversion nor a file that never
ends may be its own. The process gets one task as JSON, and sends progress and one result back.
"""

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Any, Literal

from backend.engine.core.job_control import Control
from backend.errors import ModelError, Stopped, WorkerDied, from_dict
from backend.settings import PROJECT

LOOK_S = 0.1
SHOWN_CHARACTERS = 2000


def run(
    role: Literal["gguf-check", "gguf-convert"],
    task: dict[str, Any],
    control: Control,
    *,
    seconds: float | None = None,
) -> Any:
    """Run a task and return its result; the process has ended when this returns.

    Raises the task's own error, Stopped, ModelError after `seconds`, or WorkerDied.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend.engine", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=PROJECT,
        )
        try:
            return _result(process, task, control, seconds, log)
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def _result(
    process: subprocess.Popen[bytes],
    task: dict[str, Any],
    control: Control,
    seconds: float | None,
    log: IO[bytes],
) -> Any:
    assert process.stdin is not None
    process.stdin.write(json.dumps(task).encode() + b"\n")
    process.stdin.flush()
    messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(process, messages), daemon=True).start()
    end = time.monotonic() + seconds if seconds is not None else None
    while True:
        if control.stop_requested:
            raise Stopped(f"{task['title']} was stopped, as requested. Nothing was changed.")
        if end is not None and time.monotonic() > end:
            raise ModelError(
                f"{task['title']} took longer than {seconds:.0f} seconds and was ended.",
                cure="The file may be damaged: download it again.",
            )
        try:
            message = messages.get(timeout=LOOK_S)
        except queue.Empty:
            continue
        if message is None:
            raise _died(process, task, log)
        if message["type"] == "progress":
            control.progress(message["text"], message["fraction"], force=True)
        elif message["type"] == "error":
            raise from_dict(message)
        else:
            return message["result"]


def _receive(
    process: subprocess.Popen[bytes], messages: "queue.SimpleQueue[dict[str, Any] | None]"
) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        messages.put(json.loads(line))
    messages.put(None)


def _died(process: subprocess.Popen[bytes], task: dict[str, Any], log: IO[bytes]) -> WorkerDied:
    code = process.wait()
    log.seek(max(0, log.tell() - SHOWN_CHARACTERS))
    return WorkerDied(
        f"{task['title']} was interrupted: its process ended "
        + (f"with exit code {code}." if code >= 0 else "because it was killed or crashed."),
        cure="The machine may have run out of memory: close other programs, and try again.",
        details=log.read().decode(errors="replace"),
    )
