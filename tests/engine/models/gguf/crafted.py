"""GGUF files written by hand, so that each of their numbers can be wrong."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

U32, STRING, ARRAY, U64, F32 = 4, 8, 9, 10, 6
ROOM = b"\0" * 4096


class Placed(NamedTuple):
    """A tensor in the list of a file: shape in the file's order, type and offset."""

    name: str
    shape: Sequence[int]
    kind: int = 0
    offset: int = 0


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def setting(key: str, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def named(key: str, value: str) -> bytes:
    return setting(key, STRING, text(value))


def number(key: str, value: int) -> bytes:
    return setting(key, U32, struct.pack("<I", value))


def listed(key: str, kind: int, count: int, content: bytes = b"") -> bytes:
    return setting(key, ARRAY, struct.pack("<IQ", kind, count) + content)


def tensor(placed: Placed) -> bytes:
    shape = struct.pack(f"<I{len(placed.shape)}Q", len(placed.shape), *placed.shape)
    return text(placed.name) + shape + struct.pack("<IQ", placed.kind, placed.offset)


ARCHITECTURE = named("general.architecture", "llama")
TENSORS = (Placed("token_embd.weight", (32, 4)), Placed("output_norm.weight", (32,), 0, 512))


def crafted(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    settings: Sequence[bytes] = (ARCHITECTURE,),
    tensors: Sequence[Placed] = TENSORS,
    data: bytes = ROOM,
    **counts: Any,
) -> bytes:
    """Return a file; `tensor_count` and `setting_count` may say something else than it holds."""
    said = counts.get("tensor_count", len(tensors)), counts.get("setting_count", len(settings))
    head = magic + struct.pack("<IQQ", version, *said) + b"".join(settings)
    head += b"".join(tensor(each) for each in tensors)
    return head + b"\0" * (-len(head) % 32) + data
