"""Reading and writing safetensors files tensor by tensor, without holding a whole file.

`safetensors.save_file` needs all tensors of a file at once, and `safe_open` maps the file, whose
pages then count as this process's memory (500-800 MB for a 300 MB shard, safetensors 0.8.0). Knows
nothing of models.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np
import torch

from backend.errors import ModelError
from backend.files.safetensors_header import ITEM_BYTES, StoredTensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Planned(NamedTuple):
    """A tensor to be written: its header entry is known before its content."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * ITEM_BYTES[self.dtype]


def read(stored: StoredTensor) -> torch.Tensor:
    """Read one tensor, in its stored dtype and shape; raises ModelError where the file is bad."""
    tensor = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    view = as_bytes(tensor)
    try:
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.offset)
            done = 0
            while done < stored.bytes:  # one call reads at most 2 GB
                got = file.readinto(view[done:])
                if not got:
                    raise OSError("the file ended too early")
                done += got
    except OSError as error:
        raise ModelError(
            f"{stored.file.name} could not be read ({error}).", cure="Download it again."
        ) from None
    return tensor


def read_ahead(stored: Iterable[StoredTensor]) -> Iterator[torch.Tensor]:
    """Read tensors one after the other; the next one is read while the last is processed."""
    left = iter(stored)
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        coming = [reader.submit(read, each) for each in islice(left, 1)]
        while coming:
            tensor = coming.pop().result()
            coming += [reader.submit(read, each) for each in islice(left, 1)]
            yield tensor


class Behind:
    """Does one piece of work at a time in the background, such as writing a tensor.

    Its errors are raised by the next call, or at the end, which waits for all work.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "behind")
        self._going: Future[None] | None = None

    def __call__(self, work: Callable[[torch.Tensor], None], tensor: torch.Tensor) -> None:
        """Start the next piece of work after the last one is done."""
        self._wait()
        self._going = self._worker.submit(work, tensor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._worker.shutdown()
        if kind is None:
            self._wait()

    def _wait(self) -> None:
        going, self._going = self._going, None
        if going is not None:
            going.result()


def read_samples(stored: StoredTensor, stride: int) -> torch.Tensor:
    """Read every `stride`-th number of a tensor, without the others: (samples,), stored dtype."""
    item = ITEM_BYTES[stored.dtype]
    with stored.file.open("rb", buffering=0) as file:
        found = b"".join(
            os.pread(file.fileno(), item, stored.offset + position * item)
            for position in range(0, stored.numel, stride)
        )
    return torch.frombuffer(bytearray(found), dtype=DTYPES[stored.dtype])


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor as bytes, without a copy."""
    view: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return view


class FileWriter:
    """One safetensors file: the header first, then its tensors in the planned order."""

    def __init__(self, path: Path, planned: Sequence[Planned]) -> None:
        self._left = list(reversed(planned))
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._file.write(_header(planned))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None and self._left:
            raise RuntimeError(f"{self._left[-1].key} was planned and not written.")

    def write(self, tensor: torch.Tensor) -> None:
        """Write the next tensor; raises where its dtype or shape is not as planned."""
        planned = self._left.pop()
        if (NAMES[tensor.dtype], tuple(tensor.shape)) != (planned.dtype, planned.shape):
            raise RuntimeError(f"{planned.key} came out as {tensor.dtype} {tuple(tensor.shape)}.")
        view = as_bytes(tensor.contiguous())
        while view:
            view = view[self._file.write(view) or 0 :]


def in_file_order(tensors: Sequence[Planned]) -> list[Planned]:
    """Return tensors in an order that aligns all of them: wide dtypes first."""
    return sorted(tensors, key=lambda each: -ITEM_BYTES[each.dtype])


def _header(planned: Sequence[Planned]) -> bytes:
    """Return the length and the header, padded with spaces to a multiple of eight bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for each in planned:
        end = offset + each.bytes
        entries[each.key] = {
            "dtype": each.dtype,
            "shape": each.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
