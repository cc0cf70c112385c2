"""Weight files of a model folder, and the headers of safetensors files.

The page's process uses this too, to show what an operation needs, so nothing here knows torch.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from backend.errors import ModelError
from backend.files import read_limits
from backend.files.foreign_files import open_regular, read_json
from backend.sizes import size_text

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "U16": 2, "U32": 4, "U64": 8, "BOOL": 1,
}  # fmt: skip
BLOCK_BYTES = 4 * 1024**2
FLOATS = ("F64", "F32", "F16", "BF16")


class StoredTensor(NamedTuple):
    """One tensor of a safetensors file: its type, its shape and the position of its bytes."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    bytes: int

    @property
    def numel(self) -> int:
        size = 1
        for length in self.shape:
            size *= length
        return size


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model; raises ModelError if one is missing."""
    whole, index = folder / WHOLE, folder / INDEX
    if whole.exists() or not index.exists():  # the order in which Transformers looks
        found = [whole] if whole.exists() else []
        for file in found:
            require_header(file)
        return found
    about = f"{title(folder)}/{index.name}"
    try:
        names = set(read_json(index, read_limits.INDEX_BYTES, about)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(
            f"{title(folder)}/{index.name} is not a list of weight files.",
            cure="Download it again.",
        ) from None
    strange = sorted(str(name) for name in names if Path(str(name)).name != name)
    if strange:
        raise ModelError(f"{title(folder)} names a weight file outside its folder: {strange[0]}.")
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ModelError(
            f"{title(folder)} lacks {len(missing)} of {len(names)} weight files: {missing[0]}...",
            cure="Download it again.",
        )
    files = [folder / name for name in sorted(names)]
    for file in files:
        require_header(file)
    return files


def require_header(file: Path) -> None:
    """Raise ModelError if a file is not a weight file or its header is too long."""
    with open_regular(file, file.name) as stream:
        length = int.from_bytes(stream.read(8), "little")
    if (
        read_limits.HEADER_BYTES < length < file.stat().st_size
    ):  # a longer one than the file is damaged
        raise ModelError(
            f"The header of {file.name} has {size_text(length)}, and at most "
            f"{size_text(read_limits.HEADER_BYTES)} are read.",
            cure="Store it in more files, or download it again.",
        )


def title(folder: Path) -> str:
    """Return a readable name of a model folder; in the Hub's cache the last part is a commit."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def tensors(folder: Path) -> list[StoredTensor]:
    """Return every tensor of a model folder in the order of its files."""
    return [tensor for file in weight_files(folder) for tensor in read_header(file)]


def read_header(file: Path) -> list[StoredTensor]:
    """Return the tensors of one safetensors file in the order of their bytes.

    Raises ModelError if the header does not match the file.
    """
    try:
        require_header(file)
        with open_regular(file, file.name) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > read_limits.HEADER_BYTES:
                raise ValueError("its header is longer than the file")
            header = _parsed(stream.read(length))
        size = file.stat().st_size
        found = [
            _stored(key, entry, file, 8 + length)
            for key, entry in header.items()
            if key != "__metadata__"
        ]
        if any(each.offset < 8 + length or each.offset + each.bytes > size for each in found):
            raise ValueError("a tensor is outside of it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{file.name} is damaged or cut off ({error}).", cure="Download it again."
        ) from None
    return sorted(found, key=lambda tensor: tensor.offset)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("its header cannot be read") from None
    return header


def copy_tensors(target: Path, wanted: dict[str, StoredTensor]) -> None:
    """Write a file with these tensors under new names; holds a few MB in memory.

    Raises ModelError if a source is shorter than its header says.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for key, stored in wanted.items():
        offsets = [begin, begin + stored.bytes]
        header[key] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": offsets}
        begin += stored.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for stored in wanted.values():
            for block in blocks(stored):
                file.write(block)


def blocks(stored: StoredTensor, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield a tensor's bytes in blocks; raises ModelError if the file ends before."""
    with open_regular(stored.file, stored.file.name) as file:
        file.seek(stored.offset)
        for start in range(0, stored.bytes, size):
            wanted = min(size, stored.bytes - start)
            block = file.read(wanted)
            if len(block) < wanted:
                raise ModelError(f"{stored.file.name} is cut off.", cure="Download it again.")
            yield block


def _stored(key: str, entry: dict[str, Any], file: Path, start: int) -> StoredTensor:
    begin, end = (int(each) for each in entry["data_offsets"])
    shape = tuple(int(each) for each in entry["shape"])
    stored = StoredTensor(key, str(entry["dtype"]), shape, file, start + begin, end - begin)
    item = ITEM_BYTES.get(stored.dtype)
    if item is not None and stored.numel * item != stored.bytes:
        raise ValueError(f"{key} has {stored.bytes} bytes, which does not fit its shape")
    return stored
