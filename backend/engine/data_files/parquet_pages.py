"""The memory that decoding a Parquet file takes, from the headers of its pages.

The footer may be wrong, and a dictionary with one long text can stand for a million of them. Arrow
26 allocates what the header of each page says, so all page headers are read before decoding.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

FIRST_READ = 1 << 12
LONGEST_HEADER = 1 << 24
"""The largest page header that Arrow accepts, in bytes."""
PADDING = 100
"""Bytes that old writers did not count in a column's length (PARQUET-816)."""
DATA, DICTIONARY, DATA_V2 = 0, 2, 3
PLAIN_DICTIONARY, DELTA_BYTE_ARRAY, RLE_DICTIONARY = 2, 7, 8
MOST_COUNTED = 1_000_000
DEEPEST = 8


class Page(NamedTuple):
    """One page: kind, encoding, number of values, and position and number of its bytes."""

    kind: int
    encoding: int
    values: int
    start: int
    compressed: int
    uncompressed: int


class ColumnCost(NamedTuple):
    """The most that decoding a column of one row group takes.

    `longest` is the longest value that pages can repeat without storing it again, and `repeated`
    how many values may do so.
    """

    largest_page: int
    dictionary: int
    longest: int
    repeated: int
    values: int


def column_cost(file: BinaryIO, column: Any) -> ColumnCost:
    """Read the page headers of a column of a row group; raises ValueError for damaged ones."""
    largest = dictionary = longest = repeated = values = 0
    for page in _pages(file, column):
        if page.kind == DICTIONARY:
            dictionary = max(dictionary, page.uncompressed)
            longest = max(longest, _longest_value(file, page, column))
            continue
        largest, values = max(largest, page.uncompressed), values + page.values
        if page.encoding == DELTA_BYTE_ARRAY:  # each value may repeat the whole previous one
            longest = max(longest, page.uncompressed)
        if page.encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY, DELTA_BYTE_ARRAY):
            repeated += page.values
    return ColumnCost(largest, dictionary, longest, repeated, values)


def _pages(file: BinaryIO, column: Any) -> Iterator[Page]:
    """Yield the pages that Arrow reads, in its order."""
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    end, seen = start + column.total_compressed_size + PADDING, 0
    while start < end and seen < column.num_values:
        page = _page(file, start)
        yield page
        seen += page.values if page.kind in (DATA, DATA_V2) else 0
        start = page.start + page.compressed


def _page(file: BinaryIO, start: int) -> Page:
    length = FIRST_READ
    while True:
        file.seek(start)
        content = file.read(length)
        try:
            header, end = _struct(content, 0)
            break
        except IndexError:
            if len(content) < length or length > LONGEST_HEADER:
                raise ValueError("a page's header is cut off") from None
            length *= 4
    return _described(header, start + end)


def _described(header: dict[int, Any], start: int) -> Page:
    """Return a page's header, by the field numbers of the Parquet format."""
    try:
        kind, uncompressed, compressed = (int(header[field]) for field in (1, 2, 3))
        about = header.get({DATA: 5, DICTIONARY: 7, DATA_V2: 8}.get(kind, 0), {})
        values, encoding = int(about.get(1, 0)), int(about.get(4 if kind == DATA_V2 else 2, 0))
    except (KeyError, TypeError, AttributeError):
        raise ValueError("a page's header is not a valid one") from None
    if min(uncompressed, compressed, values) < 0:
        raise ValueError("a page's header has a size below zero")
    return Page(kind, encoding, values, start, compressed, uncompressed)


def _longest_value(file: BinaryIO, page: Page, column: Any) -> int:
    """Return the length of a dictionary's longest text; the page's size where it is unknown."""
    if column.physical_type != "BYTE_ARRAY" or page.values > MOST_COUNTED:
        return page.uncompressed
    file.seek(page.start)
    content = file.read(page.compressed)
    if column.compression != "UNCOMPRESSED":
        try:
            codec = pa.Codec(column.compression.lower())
            content = codec.decompress(content, page.uncompressed, asbytes=True)
        except (pa.ArrowException, ValueError, OSError):
            return page.uncompressed
    longest = at = 0
    for _ in range(page.values):
        length = int.from_bytes(content[at : at + 4], "little")
        longest, at = max(longest, length), at + 4 + length
    return min(longest, page.uncompressed)


# -- Thrift's compact protocol, as far as page headers use it -----------------------------------


def _struct(content: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return a struct's fields by number, and its end; raises IndexError if it is cut off."""
    if depth > DEEPEST:
        raise ValueError("a page's header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while kind := content[at]:
        at += 1
        if kind >> 4:
            number += kind >> 4
        else:
            number, at = _integer(content, at)
        fields[number], at = _value(kind & 15, content, at, depth)
    return fields, at + 1


def _value(kind: int, content: bytes, at: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return content[at], at + 1
    if kind in (4, 5, 6):
        return _integer(content, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _unsigned(content, at)
        return None, at + length
    if kind == 12:
        return _struct(content, at, depth + 1)
    raise ValueError("a page's header has a field of an unknown kind")


def _integer(content: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(content, at)
    return (value >> 1) ^ -(value & 1), at


def _unsigned(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a page's header has a number that is too long")
