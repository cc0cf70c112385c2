"""The first rows of a data file on the Hub, from a small piece of it."""

import json
import tempfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)
from pyarrow import parquet

from backend.engine.core.resumed_download import Repository
from backend.engine.data_files.file_readers import READERS, Broken, read_rows
from backend.errors import DataError
from backend.files import read_limits
from backend.sizes import size_text

ROWS = 3
COLUMNS = 20
CHARACTERS = 300
TAIL_BYTES = 64 * 1024
FOOTER_END = 8
"""The length of a Parquet footer and the mark at the end of the file."""
LINES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".md")
Row = dict[str, str]


def first_rows(repository: Repository, name: str, size: int) -> list[Row]:
    """Return the first rows of a file, shortened; raises DataError where that is not possible."""
    suffix = PurePosixPath(name.removesuffix(".gz")).suffix.lower()
    packed = name.endswith(".gz")
    if suffix not in READERS and suffix != ".ndjson":
        raise DataError(f"The first rows of a {suffix or name} file cannot be shown before.")
    with tempfile.TemporaryDirectory(prefix="first-rows-") as folder:
        path = Path(folder) / f"first{suffix}"
        if suffix == ".parquet":
            _fetch_parquet(repository, name, size, path)
        else:
            path = _fetch_text(repository, name, path, packed=packed)
        return [_shortened(row) for row in islice(_rows(path, name), ROWS)]


def _rows(path: Path, name: str) -> Iterator[Any]:
    """Yield rows until the end of the piece, which may lie within a row."""
    found = 0
    try:
        for _, row in read_rows(path, PurePosixPath(name).name):
            if not isinstance(row, Broken):
                found += 1
                yield row
    except DataError:
        if not found:
            raise
    if not found:
        raise DataError(
            f"The first rows cannot be shown before the download: {PurePosixPath(name).name} has "
            f"no whole row in its first {size_text(read_limits.FIRST_ROWS_BYTES)}."
        )


def _fetch_text(repository: Repository, name: str, path: Path, *, packed: bool) -> Path:
    """Write the beginning of a text file, without a last line that may be cut off."""
    most = read_limits.FIRST_ROWS_BYTES
    content = _fetch(repository, name, 0, most)
    whole = len(content) < most
    if packed:
        unpacker = zlib.decompressobj(wbits=31)
        content = unpacker.decompress(content, most)
        whole = unpacker.eof
    if path.suffix == ".json" and _is_object(content.partition(b"\n")[0]):
        path = path.with_suffix(".jsonl")
    path = path.with_suffix(".jsonl") if path.suffix == ".ndjson" else path
    if path.suffix in LINES and not whole:
        content = content[: content.rfind(b"\n") + 1]
    path.write_bytes(content)
    return path


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _fetch_parquet(repository: Repository, name: str, size: int, path: Path) -> None:
    """Write a file of the same size that holds the footer and the first row group only.

    What was not fetched is a hole, which takes no space on the disk.
    """
    _require(size, read_limits.FIRST_ROWS_FILE_BYTES, name, "the file")
    tail = _fetch(repository, name, max(0, size - TAIL_BYTES), TAIL_BYTES)
    footer = int.from_bytes(tail[-FOOTER_END:-4], "little") + FOOTER_END
    _require(footer, read_limits.FIRST_ROWS_GROUP_BYTES, name, "its list of columns")
    if footer > len(tail):
        tail = _fetch(repository, name, max(0, size - footer), footer)
    with path.open("wb") as file:
        file.write(b"PAR1")
        file.truncate(size)
        file.seek(size - len(tail))
        file.write(tail)
    end = _end_of_first_group(path, name)
    _require(end, read_limits.FIRST_ROWS_GROUP_BYTES, name, "its first block of rows")
    head = _fetch(repository, name, 0, min(end, size))
    with path.open("r+b") as file:
        file.write(head)


def _end_of_first_group(path: Path, name: str) -> int:
    try:
        metadata = parquet.read_metadata(path)
        group = metadata.row_group(0)
        columns = [group.column(index) for index in range(group.num_columns)]
    except Exception:
        raise DataError(f"The first rows of {name} cannot be shown: it is damaged.") from None
    return max(
        (column.data_page_offset + column.total_compressed_size for column in columns), default=0
    )


def _require(size: int, most: int, name: str, what: str) -> None:
    if size > most:
        raise DataError(
            f"The first rows cannot be shown before the download: {what} in "
            f"{PurePosixPath(name).name} has {size_text(size)}."
        )


def _fetch(repository: Repository, name: str, first: int, length: int) -> bytes:
    """Return a part of a file, never more of it than was asked for."""
    url = hf_hub_url(repository.id, name, repo_type=repository.kind, revision=repository.revision)
    # Of a compressed response, the range would count other bytes.
    headers = {
        **build_hf_headers(),
        "Range": f"bytes={first}-{first + length - 1}",
        "Accept-Encoding": "identity",
    }
    found = bytearray()
    with get_session().stream("GET", url, headers=headers, timeout=read_limits.HUB_SECONDS) as got:
        hf_raise_for_status(got)
        if first and got.status_code != 206:
            raise DataError("The Hub does not send parts of this file.")
        for block in got.iter_bytes(1 << 16):
            found += block
            if len(found) >= length:
                break
    return bytes(found[:length])


def _shortened(row: Any) -> Row:
    if not isinstance(row, dict):
        return {"": _text(row)}
    return {str(key)[:CHARACTERS]: _text(row[key]) for key in islice(row, COLUMNS)}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}..."
