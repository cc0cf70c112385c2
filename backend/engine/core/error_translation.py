"""The one place that turns library errors into a sentence, a hint and details.

Knows nothing of the operations that raise them."""

import errno
import traceback

import torch
from safetensors import SafetensorError

from backend.errors import DiskFull, ModelError, OutOfMemory, WorkbenchError

# What torch.save raises when a write fails; it hides the system's own message.
_TORCH_SAVE = ("unexpected pos", "pytorchstreamwriter failed")
_NO_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory", "bad_alloc")
_NO_DISK = ("no space left", "disk quota exceeded", "file too large", *_TORCH_SAVE)


def translate(error: BaseException) -> WorkbenchError:
    """Return the error to show to the user instead of `error`."""
    if isinstance(error, WorkbenchError):
        return error
    details = "".join(traceback.format_exception(error))[-8000:]
    text = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        s in text for s in _NO_MEMORY
    ):
        return OutOfMemory(
            "The machine ran out of memory.",
            cure="Use fewer tokens per batch or a lower rank, switch on gradient checkpointing, "
            "or load a smaller base. The loaded model is unchanged.",
            details=details,
        )
    if _is_disk(error, text):
        return DiskFull(
            "The disk is full.",
            cure="Free some space and try again. What was saved before is unchanged.",
            details=details,
        )
    if isinstance(error, SafetensorError):
        return ModelError(
            "A weight file is damaged or cut off.", cure="Download it again.", details=details
        )
    return WorkbenchError(
        f"An unexpected error occurred: {type(error).__name__}: {_first_line(error)}",
        cure="The session is as it was before. The details show where it happened.",
        details=details,
    )


def _is_disk(error: BaseException, text: str) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (isinstance(error, OSError) and error.errno in codes) or any(s in text for s in _NO_DISK)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
