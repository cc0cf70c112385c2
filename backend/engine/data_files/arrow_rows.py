"""The rows of an Arrow file or stream, as `datasets` writes them with `save_to_disk`.

The file is mapped, not read, so its own figures cannot make Arrow allocate anything; what Arrow
would allocate for (compressed batches) or repeat without end (views, runs) is refused.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from backend.engine.data_files.parquet_rows import BATCH_ROWS, as_python, object_bytes
from backend.engine.data_files.text_lines import KINDS
from backend.errors import DataError
from backend.files import read_limits
from backend.files.foreign_files import require_regular
from backend.files.unpacking import too_much

FILE_MAGIC, STREAM_MAGIC = b"ARROW1", b"\xff\xff\xff\xff"
REWRITE = "Write it again as Parquet or JSONL."
FREE_ROWS = 1_000_000
"""Above it a file has no more rows than bytes: each takes one at least."""
PLAIN = (
    pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating,
    pa.types.is_decimal, pa.types.is_temporal, pa.types.is_string, pa.types.is_large_string,
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary,
)  # fmt: skip
NESTED = (
    pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_struct,
    pa.types.is_map,
)  # fmt: skip
# Places in Arrow's messages (flatbuffers): github.com/apache/arrow, format/Message.fbs
HEADER, COMPRESSION = 2, 3


def read(path: Path, name: str) -> Iterator[Any]:
    """Yield the rows, None for a row that is too long; raises DataError where one is damaged."""
    size = path.stat().st_size
    most_bytes = max(read_limits.UNPACKED_FREE_BYTES, read_limits.UNPACKED_RATIO * size)
    rows = taken = 0
    with _opened(path, name) as batches:
        for batch in batches:
            rows += batch.num_rows
            if rows > max(FREE_ROWS, size):
                raise too_much(name, max(FREE_ROWS, size))
            for start in range(0, batch.num_rows, BATCH_ROWS):
                piece = batch.slice(start, BATCH_ROWS)
                taken += object_bytes(piece)
                if taken > most_bytes:
                    raise too_much(name, most_bytes)
                yield from as_python(piece)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Iterator[pa.RecordBatch]]:
    require_regular(path, name, DataError)
    try:
        with pa.memory_map(str(path)) as mapped:
            start = bytes(mapped.read(8))
            if not start.startswith((FILE_MAGIC, STREAM_MAGIC)):
                raise DataError(f"{name} is not an Arrow file.", cure=f"Use {KINDS}.")
            # After the magic, a file is a stream with an index behind it.
            mapped.seek(0 if start.startswith(STREAM_MAGIC) else 8)
            yield _batches(mapped, name)
    except (pa.ArrowException, struct.error, OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{name} is a damaged Arrow file: its content cannot be read to the end "
            f"({str(error)[:100]}).",
            cure="Write or download it again.",
        ) from None


def _batches(mapped: pa.MemoryMappedFile, name: str) -> Iterator[pa.RecordBatch]:
    schema = pa.ipc.read_schema(pa.ipc.read_message(mapped))
    _require_plain(schema, name)
    while True:
        try:
            message = pa.ipc.read_message(mapped)
        except EOFError:
            return
        if message.type != "record batch" or _is_compressed(message.metadata):
            raise DataError(
                f"{name} has compressed or shared parts, which are not read.", cure=REWRITE
            )
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)  # wrong offsets would read the memory of others
        yield batch


def _require_plain(schema: pa.Schema, name: str) -> None:
    if len(schema) > read_limits.COLUMNS:
        raise DataError(
            f"{name} has {len(schema):,} columns, and at most {read_limits.COLUMNS:,} are read.",
            cure="Leave out the columns that are not needed.",
        )
    for field in schema:
        if not _is_plain(field.type):
            raise DataError(
                f"The column {field.name[:80]!r} of {name} has the type {str(field.type)[:80]}, "
                "which is not read.",
                cure=REWRITE,
            )


def _is_plain(kind: pa.DataType) -> bool:
    if any(each(kind) for each in PLAIN):
        return True
    if not any(each(kind) for each in NESTED):
        return False
    return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Tell whether a record batch is compressed, by its own header."""
    content = metadata.to_pybytes()
    table = struct.unpack_from("<I", content)[0]
    header = _field(content, table, HEADER)
    if header is None:
        return False
    header += struct.unpack_from("<I", content, header)[0]
    return _field(content, header, COMPRESSION) is not None


def _field(content: bytes, table: int, index: int) -> int | None:
    """Return the position of a table's field; None where it is not set."""
    vtable = table - struct.unpack_from("<i", content, table)[0]
    size = struct.unpack_from("<H", content, vtable)[0]
    if 4 + 2 * index >= size:
        return None
    offset = struct.unpack_from("<H", content, vtable + 4 + 2 * index)[0]
    return table + offset if offset else None
