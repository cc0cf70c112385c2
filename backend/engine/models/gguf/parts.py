"""The GGUF files of one model: a file, the only one of a folder, or the parts of a split one.

Knows no torch.
"""

import os
import re
import struct
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from backend.errors import InvalidRequest, ModelError, NotFound
from backend.files import gguf_header, read_limits
from backend.files.foreign_files import open_regular, require_regular
from backend.files.gguf_header import DAMAGED, MAGIC, USUAL_ALIGNMENT, Header
from backend.files.uploads import MODEL_SUFFIXES
from backend.sizes import size_text

PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
MOST_PARTS = 1000
FIRST_SETTING = 24
BLOCK_BYTES = 1 << 24


def is_gguf(name: str) -> bool:
    """Return whether a file's name is that of a GGUF file."""
    return name.lower().endswith(MODEL_SUFFIXES)


def of_file(file: Path) -> tuple[Path, ...]:
    """Return a file, or all parts of the model that it is a part of.

    Raises NotFound where one does not exist, ModelError where one is not a regular file.
    """
    names = part_names(file.name)
    missing = [name for name in names if not os.path.lexists(file.parent / name)]
    if missing and len(names) == 1:
        raise NotFound(f"There is no file {str(file)!r}.", cure="Check the path.")
    if missing:
        raise NotFound(
            f"{file.name} is one of {len(names)} parts, and {len(missing)} of them are missing: "
            f"{missing[0]}{' ...' if missing[1:] else ''}.",
            cure="Put all parts into one folder.",
        )
    files = tuple(file.parent / name for name in names)
    for each in files:
        if not each.exists():  # a link to nothing, or a loop of links
            raise NotFound(f"{each.name} is a link to a file that does not exist.")
        require_regular(each, each.name)
    return files


def part_names(name: str) -> tuple[str, ...]:
    """Return the names of all parts of a model, in their order; a whole file's own name alone."""
    found = PART.fullmatch(name)
    count = int(found["count"]) if found else 0
    if found is None or not 1 <= count <= MOST_PARTS:
        return (name,)
    return tuple(f"{found['stem']}-{each:05d}-of-{count:05d}.gguf" for each in range(1, count + 1))


def of_folder(folder: Path) -> Path | None:
    """Return the one GGUF model of a folder without a config.json; None where it holds none.

    Raises InvalidRequest, with the files to choose from, where it holds several.
    """
    if (folder / "config.json").exists():
        return None
    with os.scandir(folder) as found:
        names = sorted(each.name for each in islice(found, read_limits.FOLDER_ENTRIES))
    models = models_of([name for name in names if is_gguf(name)])
    if len(models) > 1:
        sizes = {name: (folder / name).stat().st_size for name in models}
        raise InvalidRequest(
            f"{folder.name} holds {len(models)} GGUF files: {listed(sizes)}.",
            cure="Give the path of one of them.",
        )
    return folder / models[0] if models else None


def models_of(names: Sequence[str]) -> list[str]:
    """Return the models among the names of GGUF files: first parts, and no vision parts."""
    return [
        name
        for name in names
        if part_names(name)[0] == name and not name.lower().rsplit("/", 1)[-1].startswith("mmproj")
    ]


def listed(sizes: dict[str, int], most: int = 12) -> str:
    """Return files with their sizes as text."""
    shown = [f"{name} ({size_text(size)})" for name, size in sorted(sizes.items())]
    rest = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + rest


def header_of(files: Sequence[Path]) -> Header:
    """Return the header of a model, of all its parts together; raises ModelError."""
    if len(files) == 1:
        return gguf_header.read(files[0])
    headers = headers_of(files)
    tensors = tuple(tensor for each in headers for tensor in each.tensors)
    return headers[0]._replace(tensors=tensors)


def headers_of(files: Sequence[Path]) -> list[Header]:
    """Read the parts of a model, which have to belong together; raises ModelError."""
    headers = [gguf_header.read(file, is_part=True) for file in files]
    names = [tensor.name for each in headers for tensor in each.tensors]
    wrong = next(
        (
            each.file.name
            for number, each in enumerate(headers)
            if each.values.get("split.no") != number or each.values.get("split.count") != len(files)
        ),
        "",
    )
    said = headers[0].values.get("split.tensors.count")
    if not isinstance(headers[0].values.get("general.architecture"), str):
        wrong = files[0].name
    if wrong or len(set(names)) != len(names) or said != len(names):
        raise ModelError(
            f"{wrong or files[0].name} and the other {len(files) - 1} parts do not belong "
            "together.",
            cure=DAMAGED,
        )
    return headers


def join(files: Sequence[Path], target: Path) -> None:
    """Write the parts of a model as one file, which Transformers 5.23 needs."""
    headers = headers_of(files)
    first = headers[0]
    alignment = int(first.values.get("general.alignment", USUAL_ALIGNMENT))
    tensors = [(each.file, tensor) for each in headers for tensor in each.tensors]
    with target.open("wb") as out:
        out.write(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(first.values)))
        _copy(first.file, FIRST_SETTING, first.settings_end - FIRST_SETTING, out)
        offset = 0
        for _, tensor in tensors:
            name = tensor.name.encode()
            out.write(struct.pack("<Q", len(name)) + name)
            out.write(
                struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
            )
            out.write(struct.pack("<IQ", tensor.kind.id, offset))
            offset += -(-tensor.bytes // alignment) * alignment
        for file, tensor in tensors:
            out.write(bytes(-out.tell() % alignment))
            _copy(file, tensor.start, tensor.bytes, out)


def _copy(file: Path, start: int, count: int, out: object) -> None:
    with open_regular(file, file.name) as source:
        source.seek(start)
        for at in range(0, count, BLOCK_BYTES):
            block = source.read(min(BLOCK_BYTES, count - at))
            out.write(block)  # type: ignore[attr-defined]


def copy_room(files: Sequence[Path]) -> int:
    """Return the bytes that joining parts takes for a while."""
    return sum(file.stat().st_size for file in files) if len(files) > 1 else 0
