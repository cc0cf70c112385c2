"""The header of a GGUF file, read within limits and checked before anything in the file is used.

The layout is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The
readers of `gguf` 0.19.0 and Transformers 5.23 believe every count and offset of a file, so they may
hang, take all memory, or read beyond its end. Nothing here knows torch.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from backend.errors import ModelError, Unsupported, WorkbenchError
from backend.files import read_limits
from backend.files.foreign_files import open_regular
from backend.sizes import size_text

MAGIC = b"GGUF"
VERSIONS = (2, 3)
USUAL_ALIGNMENT, MOST_ALIGNMENT = 32, 2**20
MOST_DIMENSIONS = 4
KEPT_VALUES = 2048
"""The longest lists that are kept, such as one number for each layer."""
STRING, ARRAY = 8, 9
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
UINT32 = 4
DAMAGED = "Download it again, or make it again from the original model."


class Kind(NamedTuple):
    """A type of numbers: its name, the numbers in a block, and the bytes of a block."""

    id: int
    name: str
    numbers: int
    bytes: int


KINDS = {
    number: Kind(number, name, numbers, size)
    for number, name, numbers, size in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136), (24, "I8", 1, 1), (25, "I16", 1, 2),
        (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8), (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18),
    )
}  # fmt: skip
"""Every type of the format, by its number in a file (`enum ggml_type`)."""


class Many(NamedTuple):
    """A list of strings, or a long one of numbers, of which only the length is kept."""

    length: int


class Tensor(NamedTuple):
    """A tensor of the file; `shape` is in torch's order, `start` counts from the file's begin."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    start: int
    bytes: int

    @property
    def numel(self) -> int:
        size = 1
        for length in self.shape:
            size *= length
        return size


class Header(NamedTuple):
    """What a GGUF file says about itself; `values` has its settings."""

    file: Path
    values: dict[str, Any]
    tensors: tuple[Tensor, ...]
    settings_end: int
    """Where the settings end, which begin at byte 24."""

    @property
    def architecture(self) -> str:
        return str(self.values["general.architecture"])

    @property
    def numel(self) -> int:
        """The numbers in all tensors."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def kind(self) -> str:
        """The type that most of the numbers have."""
        numbers: dict[str, int] = {}
        for tensor in self.tensors:
            numbers[tensor.kind.name] = numbers.get(tensor.kind.name, 0) + tensor.numel
        return max(numbers, key=lambda name: numbers[name])

    def own(self) -> dict[str, Any]:
        """Return the settings of the model itself, without its architecture's name."""
        prefix = f"{self.architecture}."
        return {k.removeprefix(prefix): v for k, v in self.values.items() if k.startswith(prefix)}


def read(file: Path, *, is_part: bool = False) -> Header:
    """Read and check a file's header; its numbers are not read. A part of a model may say less.

    Raises ModelError where the file is damaged or not a GGUF file, Unsupported for other versions.
    """
    with open_regular(file, file.name) as stream:
        reader = _Reader(stream, file)
        tensors, settings = _counts(reader)
        values = _values(reader, settings)
        end = reader.at
        entries = [_entry(reader) for _ in range(tensors)]
        alignment = _alignment(reader, values)
        start = -(-reader.at // alignment) * alignment
        placed = tuple(_placed(reader, entry, start, alignment) for entry in entries)
    _require_apart(reader, placed)
    if not is_part and not isinstance(values.get("general.architecture"), str):
        raise reader.error("it does not name its architecture")
    if not is_part and not placed:
        raise reader.error("it holds no tensors")
    return Header(file, values, placed, end)


class _Reader:
    """Reads numbers and strings, none of which may be longer than what is left of the file."""

    def __init__(self, stream: IO[bytes], file: Path) -> None:
        self.size = file.stat().st_size
        self.name = file.name
        self.at = 0
        self._stream = stream

    def error(self, what: str, kind: Callable[..., WorkbenchError] = ModelError) -> WorkbenchError:
        return kind(f"{self.name} cannot be used: {what}.", cure=DAMAGED)

    def take(self, count: int, what: str) -> bytes:
        if self.at + count > read_limits.GGUF_HEADER_BYTES:
            most = size_text(read_limits.GGUF_HEADER_BYTES)
            raise self.error(f"its header is longer than {most}, which no real one is")
        content = self._stream.read(count) if self.at + count <= self.size else b""
        if len(content) < count:
            raise self.error(f"it ends within {what}")
        self.at += count
        return content

    def number(self, layout: str, what: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def text(self, most: int, what: str) -> str:
        length = self.number("<Q", what)
        if length > most:
            raise self.error(f"{what} says it has {length:,} bytes, and at most {most:,} are read")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{what} is not text in UTF-8") from None


def _counts(reader: _Reader) -> tuple[int, int]:
    """Return how many tensors and settings the file states."""
    if reader.size == 0:
        raise reader.error("it is empty")
    if reader.take(4, "its first bytes") != MAGIC:
        raise reader.error("it is not a GGUF file, because it does not begin with GGUF")
    version = reader.number("<I", "its version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS
        raise Unsupported(
            f"{reader.name} is "
            + (
                "a GGUF file for big-endian machines."
                if swapped
                else f"a GGUF file of version {version}, and 2 and 3 can be read."
            ),
            cure="Make it again with a current llama.cpp, or load the original model.",
        )
    tensors, settings = reader.number("<Q", "its counts"), reader.number("<Q", "its counts")
    for count, most, what in (
        (tensors, read_limits.GGUF_TENSORS, "tensors"),
        (settings, read_limits.GGUF_SETTINGS, "settings"),
    ):
        if count > most:
            raise reader.error(f"it says it has {count:,} {what}, and at most {most:,} are read")
    return tensors, settings


def _values(reader: _Reader, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number in range(count):
        key = reader.text(read_limits.GGUF_NAME_BYTES, f"the name of setting {number + 1}")
        if key in values:
            raise reader.error(f"its setting {key[:80]!r} is there twice")
        values[key] = _value(reader, reader.number("<I", f"{key[:80]}"), key[:80])
    return values


def _value(reader: _Reader, kind: int, key: str) -> Any:
    if kind == STRING:
        is_template = key.startswith("tokenizer.chat_template")
        most = read_limits.TEMPLATE_BYTES if is_template else read_limits.GGUF_TEXT_BYTES
        return reader.text(most, key)
    if kind in SCALARS:
        return reader.number(SCALARS[kind], key)
    if kind != ARRAY:
        raise reader.error(f"{key} has a value of the unknown type {kind}")
    inner, count = reader.number("<I", key), reader.number("<Q", key)
    if inner == ARRAY:
        raise reader.error(f"{key} is a list of lists, which no model has")
    if inner != STRING and inner not in SCALARS:
        raise reader.error(f"{key} is a list of values of the unknown type {inner}")
    if count > read_limits.GGUF_LIST_VALUES:
        most = read_limits.GGUF_LIST_VALUES
        raise reader.error(f"{key} says it has {count:,} values, and at most {most:,} are read")
    if inner == STRING:
        for _ in range(count):
            reader.text(read_limits.GGUF_TOKEN_BYTES, f"a value of {key}")
        return Many(count)
    layout = SCALARS[inner]
    content = reader.take(count * struct.calcsize(layout), key)
    if count > KEPT_VALUES:
        return Many(count)
    return [each for (each,) in struct.iter_unpack(layout, content)]


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Read a tensor's name, shape in the file's order, type and offset."""
    name = reader.text(read_limits.GGUF_NAME_BYTES, "the name of a tensor")
    about = f"the tensor {name[:80]!r}"
    dimensions = reader.number("<I", about)
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise reader.error(f"{about} has {dimensions:,} dimensions, and 1 to 4 are possible")
    shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions, about))
    return name, shape, reader.number("<I", about), reader.number("<Q", about)


def _alignment(reader: _Reader, values: dict[str, Any]) -> int:
    alignment = values.get("general.alignment", USUAL_ALIGNMENT)
    good = type(alignment) is int and 8 <= alignment <= MOST_ALIGNMENT
    if not good or alignment & (alignment - 1):
        raise reader.error(f"its alignment is {str(alignment)[:40]}, which is not possible")
    return int(alignment)


def _placed(
    reader: _Reader, entry: tuple[str, tuple[int, ...], int, int], start: int, alignment: int
) -> Tensor:
    """Return a tensor whose shape, type and place fit each other and the file."""
    name, shape, number, offset = entry
    about = f"the tensor {name[:80]!r}"
    kind = KINDS.get(number)
    if kind is None:
        raise reader.error(f"{about} has the unknown type {number}")
    numbers = 1
    for length in shape:
        numbers *= length
        if not 0 < length <= read_limits.GGUF_NUMBERS or numbers > read_limits.GGUF_NUMBERS:
            sizes = " x ".join(str(each) for each in shape)
            raise reader.error(f"{about} says its shape is {sizes}, which is not possible")
    if shape[0] % kind.numbers:
        raise reader.error(
            f"{about} has rows of {shape[0]:,} numbers, but {kind.name} needs multiples of "
            f"{kind.numbers}"
        )
    size = numbers // kind.numbers * kind.bytes
    if offset % alignment or start + offset + size > reader.size:
        raise reader.error(f"{about} lies outside of the file, which is damaged or cut off")
    return Tensor(name, kind, tuple(reversed(shape)), start + offset, size)


def _require_apart(reader: _Reader, tensors: tuple[Tensor, ...]) -> None:
    """Raise ModelError where two tensors share a name or bytes."""
    seen: set[str] = set()
    end = 0
    for tensor in sorted(tensors, key=lambda each: each.start):
        if tensor.name in seen:
            raise reader.error(f"the tensor {tensor.name[:80]!r} is there twice")
        if tensor.start < end:
            raise reader.error(f"the tensor {tensor.name[:80]!r} overlaps with another one")
        seen.add(tensor.name)
        end = tensor.start + tensor.bytes
