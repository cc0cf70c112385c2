"""The rows of a Parquet file, decoded in small batches whose size is known beforehand."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as parquet

from backend.engine.data_files.file_type import real_kind
from backend.engine.data_files.parquet_pages import ColumnCost, column_cost
from backend.engine.data_files.text_lines import KINDS, Broken
from backend.errors import DataError
from backend.files import read_limits
from backend.files.foreign_files import open_regular
from backend.files.unpacking import too_much
from backend.sizes import size_text

log = logging.getLogger(__name__)
BATCH_ROWS = 1000
BATCH_BYTES = 1 << 26
"""The bytes that rows decoded at once may take."""
VALUE_BYTES = 64
"""The bytes that a list's value takes as a Python object, without its text."""
BYTES_PER_CHARACTER = 4
REWRITE = "Write it again with smaller row groups, or as JSONL."


def count(path: Path, name: str) -> int:
    """Return the number of rows; raises DataError where the file cannot be read."""
    return int(_open(path, name).metadata.num_rows)


def read(path: Path, name: str) -> Iterator[Any]:
    """Yield the rows, None for a row that is too long; raises DataError where a row is damaged."""
    file = _open(path, name)
    decoded, most = 0, _most_decoded(path)
    with open_regular(path, name, DataError) as raw:
        for group in range(file.metadata.num_row_groups):
            costs = _require_bounded(file, group, raw, path, name)
            for batch in _batches(file, group, _batch_rows(costs), path, name):
                decoded += batch.nbytes
                if decoded > most:
                    raise too_much(name, most)
                yield from as_python(batch)


def require_bounded(path: Path, name: str) -> None:
    """Raise DataError where reading the file would take more memory than allowed."""
    file = _open(path, name)
    with open_regular(path, name, DataError) as raw:
        for group in range(file.metadata.num_row_groups):
            _require_bounded(file, group, raw, path, name)


def _open(path: Path, name: str) -> parquet.ParquetFile:
    kind = real_kind(path)
    if kind != "a Parquet file":
        what = f"{name} is {kind or 'text'}, although its name says otherwise."
        raise DataError(what, cure=f"Use {KINDS}, with the matching extension.")
    _require_footer(path, name)
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:
        raise _damaged(path, name, error) from None
    _require(file.metadata.num_columns, read_limits.COLUMNS, f"{name} has {{}} columns")
    _require(file.metadata.num_rows, read_limits.PARQUET_ROWS, f"{name} has {{}} rows")
    return file


def _require_footer(path: Path, name: str) -> None:
    """Raise DataError where the file's footer is too long to be read."""
    with open_regular(path, name, DataError) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
    if read_limits.PARQUET_FOOTER_BYTES < length < size:  # longer than the file means damaged
        raise DataError(
            f"The list of columns and row groups in {name} has {size_text(length)}, and at most "
            f"{size_text(read_limits.PARQUET_FOOTER_BYTES)} are read.",
            cure="Write it again with fewer row groups.",
        )


def _require_bounded(
    file: parquet.ParquetFile, group: int, raw: BinaryIO, path: Path, name: str
) -> list[ColumnCost]:
    """Return a row group's costs; raises DataError where decoding it would take too much memory."""
    described = file.metadata.row_group(group)
    try:
        costs = [column_cost(raw, described.column(i)) for i in range(described.num_columns)]
    except (ValueError, IndexError, OSError) as error:
        raise _damaged(path, name, error) from None
    pages = sum(cost.largest_page + cost.dictionary for cost in costs)
    repeated = 0
    for index, cost in enumerate(costs):
        if file.schema.column(index).max_repetition_level:  # one row may hold all the values
            _require(
                cost.values, read_limits.PARQUET_VALUES, f"A row group of {name} has lists of {{}}"
            )
            repeated += cost.repeated * cost.longest
    for size in (pages, repeated):
        if size > read_limits.PARQUET_DECODED_BYTES:
            raise DataError(
                f"A row group of {name} may take {size_text(size)} of memory when it is read, and "
                f"at most {size_text(read_limits.PARQUET_DECODED_BYTES)} are allowed.",
                cure=REWRITE,
            )
    return costs


def _require(count: int, most: int, what: str) -> None:
    if count > most:
        raise DataError(
            f"{what.format(f'{count:,}')}, and at most {most:,} are read.", cure=REWRITE
        )


def _batch_rows(costs: list[ColumnCost]) -> int:
    """Return how many rows to decode at once, if each one repeats the longest value."""
    longest = sum(cost.longest for cost in costs)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, longest)))


def _batches(
    file: parquet.ParquetFile, group: int, at_once: int, path: Path, name: str
) -> Iterator[pa.RecordBatch]:
    batches = file.iter_batches(batch_size=at_once, row_groups=[group])
    while True:
        try:
            yield next(batches)
        except StopIteration:
            return
        except Exception as error:
            raise _damaged(path, name, error) from None


def _most_decoded(path: Path) -> int:
    return max(read_limits.UNPACKED_FREE_BYTES, read_limits.UNPACKED_RATIO * path.stat().st_size)


def as_python(batch: pa.RecordBatch) -> Iterator[Any]:
    """Yield rows as objects; None for one that is too long, a broken one for a wrong value."""
    if object_bytes(batch) <= BATCH_BYTES:
        try:
            yield from batch.to_pylist()
            return
        except (ValueError, OverflowError):
            pass  # a text that is not UTF-8, or a time beyond the calendar: find the row
    most = read_limits.ROW_CHARACTERS * BYTES_PER_CHARACTER
    for index in range(batch.num_rows):
        yield _one(batch.slice(index, 1), most)


def _one(row: pa.RecordBatch, most: int) -> Any:
    if object_bytes(row) > most:
        return None
    try:
        return row.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return Broken(f"a value in it cannot be read ({str(error)[:100]})", "")


def object_bytes(batch: pa.RecordBatch) -> int:
    """Return about how much memory rows take as Python objects."""
    values = sum(_values(column) for column in batch.columns)
    return int(batch.nbytes) + VALUE_BYTES * values


def _values(array: pa.Array) -> int:
    """Count the values in an array, including those inside lists and structs."""
    kind = array.type
    if pa.types.is_struct(kind):
        return len(array) + sum(_values(part) for part in array.flatten())
    if pa.types.is_nested(kind) and hasattr(array, "flatten"):
        return len(array) + _values(array.flatten())
    return len(array)


def _damaged(path: Path, name: str, error: Exception) -> DataError:
    # The reader's own message contains the folder in which an upload is kept.
    log.info("%s cannot be read.", path, exc_info=error)
    return DataError(
        f"{name} is a damaged Parquet file: its content cannot be read to the end.",
        cure="Write or download it again, and upload it once more.",
    )
