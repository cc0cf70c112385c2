"""The process that works on a GGUF file: one task in, progress and one result out.

`python -m backend.engine gguf-check` and `gguf-convert` start it. A check imports no torch, so it
takes a moment only.
"""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from backend.engine.models.gguf import checks, parts
from backend.errors import ModelError, WorkbenchError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Tell = Callable[[str, float], None]
Do = Callable[[dict[str, Any], Tell], Any]


def serve(channel: BinaryIO, do: Do) -> None:
    """Do the task on standard input; the process ends with its parent."""
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, args=(task.get("folder"),), daemon=True).start()

    def tell(text: str, fraction: float) -> None:
        _send(channel, {"type": "progress", "text": text, "fraction": fraction})

    try:
        answer = {"type": "result", "result": do(task, tell)}
    except WorkbenchError as error:
        answer = {"type": "error", **error.to_dict()}
    _send(channel, answer)


def check(task: dict[str, Any], tell: Tell) -> Any:
    """Check the files of a task; returns what they are, as `checks.About` has it."""
    if resource is not None:
        most = int(task["most_bytes"])
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    files = [Path(file) for file in task["files"]]
    try:
        return list(checks.about(parts.header_of(files)))
    except MemoryError:
        reason = "its header takes too much memory"
    except OSError as error:
        reason = error.strerror or str(error)
    raise ModelError(f"{files[0].name} cannot be read: {reason}.", cure="Download it again.")


def _end_with_parent(folder: str | None) -> None:
    """End when the parent has ended, which then cannot remove an unfinished folder itself."""
    sys.stdin.buffer.read()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _send(channel: BinaryIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message).encode() + b"\n")
    channel.flush()
