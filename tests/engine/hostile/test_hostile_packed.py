"""Compressed, joined and saved data that would fill the memory, the disk or a day: refused."""

import bz2
import gzip
import json
import lzma
import random
import re
import struct
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from backend.engine.data_files.file_readers import Broken, count_rows, read_rows
from backend.engine.data_files.sources import open_source
from backend.engine.data_files.text_lines import read_lines
from backend.errors import DataError
from backend.files import read_limits
from backend.files.unpacking import DataFile
from tests.engine.hostile.test_hostile_data import memory_of_reading

TOO_MUCH = re.compile(r"unpacks to more than \d+ MB, far more than text of its size should\.")
LINE = b'{"text": "a row like all others"}\n'


def packed(path: Path, piece: bytes, times: int) -> Path:
    """Write a compressed file of many members, without ever holding its content."""
    if path.suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as file:
            file.write(piece)
        member = sink.getvalue().to_pybytes()
    else:
        compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
        member = compress[path.suffix](piece)
    path.write_bytes(member * times)
    return path


@contextmanager
def seconds(most: float) -> Iterator[None]:
    """Fail where something takes much longer than a reader that does not follow the bomb."""
    started = time.process_time()
    yield
    assert time.process_time() - started < most


def refused(path: Path) -> str:
    with seconds(60), pytest.raises(DataError) as caught:
        [deque(table.rows(), 0) for table in open_source(str(path)).tables]
    return str(caught.value)


def outcome(read: Callable[[], int]) -> int | str:
    """Return the number of rows that are read, or why they are not."""
    try:
        with seconds(60):
            return read()
    except DataError as error:
        return str(error)


# -- compressed files ----------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_a_bomb_of_lines_is_refused_before_its_rows_are_read(
    tmp_path: Path, packing: str, suffix: str
) -> None:
    path = packed(tmp_path / f"bomb{suffix}{packing}", LINE * 300_000, 30)  # 300 MB
    assert path.stat().st_size < 1_000_000

    said = refused(path)
    assert said.startswith(f"bomb{suffix}{packing} unpacks to more than ")
    assert TOO_MUCH.search(said)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_bomb_of_one_line_does_not_fill_the_memory(tmp_path: Path, packing: str) -> None:
    path = packed(tmp_path / f"bomb.jsonl{packing}", b"y" * 10_000_000, 30)

    grown, refusal = memory_of_reading(path)

    assert grown < 300_000_000
    assert TOO_MUCH.search(refusal)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_bomb_that_is_unpacked_to_the_disk_ends_at_the_limit(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = packed(tmp_path / f"bomb{suffix}.gz", b"\0" * 10_000_000, 30)

    assert TOO_MUCH.search(refused(path))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_a_bomb_of_short_lines_is_refused_within_seconds(
    tmp_path: Path, packing: str, end: bytes
) -> None:
    path = packed(tmp_path / f"bomb.csv{packing}", (b"a,b" + end) * 100_000, 40)  # 16 MB
    started = time.monotonic()

    assert "unpacks to more than 1,000,000 lines" in refused(path)
    assert time.monotonic() - started < 10


def test_a_million_different_packed_rows_are_read(tmp_path: Path) -> None:
    chosen = random.Random(0).choices([b"yes\n", b"no\n"], k=1_100_000)
    path = packed(tmp_path / "data.txt.gz", b"".join(chosen), 1)

    assert sum(1 for _ in read_lines(DataFile(path, path.name))) == 1_100_000


def test_whatever_its_ratio_a_file_unpacks_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_limits, "DATA_UNPACKED_BYTES", 10_000)
    path = packed(tmp_path / "data.jsonl.gz", LINE, 1000)

    assert "unpacks to more than 10 KB" in refused(path)


@pytest.mark.parametrize("outer", [".gz", ".xz"])
@pytest.mark.parametrize("inner", [".gz", ".bz2", ".zst"])
def test_nested_compression_is_refused(tmp_path: Path, outer: str, inner: str) -> None:
    content = packed(tmp_path / f"x{inner}", LINE, 10).read_bytes()
    path = packed(tmp_path / f"data.jsonl{outer}", content, 1)

    assert "it is compressed twice. Unpack it once yourself." in refused(path)


def test_an_unpacker_that_needs_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.xz"
    content = bytearray(lzma.compress(LINE, lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2}]))
    place = content.index(b"\x21\x01", 12) + 2  # the size of the dictionary, in the block header
    content[place] = 38  # 2 GB
    header = bytes(content[12 : 12 + (content[12] + 1) * 4 - 4])
    checksum = struct.pack("<I", zlib.crc32(header))
    content[12 + len(header) : 12 + len(header) + 4] = checksum
    path.write_bytes(content)

    assert "cannot be unpacked (Memory usage limit exceeded)" in refused(path)


# -- zips ----------------------------------------------------------------------------------------


def test_a_bomb_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("data.jsonl", "w") as member,
    ):
        for _ in range(300):
            member.write(LINE * 30_000)

    said = refused(path)
    assert said.startswith("data.jsonl in bomb.zip unpacks")
    assert TOO_MUCH.search(said)


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_that_unpacks_without_a_limit_is_refused(tmp_path: Path, how: int) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("data.jsonl", LINE)

    assert "it uses an unusual compression method" in refused(path)


def test_a_huge_directory_of_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(15_000):
            archive.writestr(f"{number}{'x' * 80}.jsonl", b"")

    assert refused(path).startswith("The list of files in many.zip has 2 MB, and at most 1 MB are")


def test_too_many_files_in_a_zip_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1001):
            archive.writestr(f"{number}.jsonl", LINE)

    assert "has 1,001 data files, and at most 1,000 are read" in refused(path)


def test_a_path_in_a_zip_is_never_followed(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "data.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../up.jsonl", LINE)
        archive.writestr("/tmp/down.parquet", b"PAR1")

    before = sorted(tmp_path.rglob("*"))
    assert "is a damaged Parquet file" in refused(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("harm", [lambda c: c[:-30], lambda c: c[:20] + b"\xff" * 40 + c[60:]])
def test_a_damaged_zip_is_said(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.jsonl", b"".join(b'{"text": "%d"}\n' % n for n in range(500)))
    path.write_bytes(harm(path.read_bytes()))

    assert "is damaged or locked and cannot be unpacked" in refused(path)


# -- Arrow ---------------------------------------------------------------------------------------


def arrow(path: Path, table: pa.Table, *, compression: str | None = None) -> Path:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    return path


def lists(count: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count, pa.int8()))


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (lambda: pa.nulls(50_000_000), "far more than text of its size should"),
        (
            lambda: pa.RunEndEncodedArray.from_arrays([2_000_000_000], ["x"]),
            "has the type run_end_encoded",
        ),
        (lambda: pa.array(["x" * 1000] * 9).dictionary_encode(), "has the type dictionary"),
        (lambda: pa.array(["x" * 100], pa.string_view()), "has the type string_view"),
        (lambda: pa.array([b"x"], pa.binary_view()), "has the type binary_view"),
    ],
)
def test_what_repeats_without_end_is_refused(
    tmp_path: Path, column: Callable[[], pa.Array], sentence: str
) -> None:
    path = arrow(tmp_path / "bad.arrow", pa.table({"text": column()}))

    assert sentence in refused(path)


def test_compressed_batches_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    table = pa.table({"text": ["x" * 1_000_000] * 300})
    path = arrow(tmp_path / "bad.arrow", table, compression="zstd")

    grown, refusal = memory_of_reading(path)

    assert "has compressed or shared parts, which are not read" in refusal
    assert grown < 50_000_000


def test_a_list_of_millions_in_one_arrow_row_is_no_row(tmp_path: Path) -> None:
    path = arrow(tmp_path / "nulls.arrow", pa.table({"text": lists(5_000_000)}))

    ((_, row),) = read_rows(path, path.name)

    assert isinstance(row, Broken)


def test_too_many_columns_of_an_arrow_file_are_refused(tmp_path: Path) -> None:
    table = pa.table({f"c{number}": ["x"] for number in range(20_000)})

    assert "has 20,000 columns, and at most 10,000 are read" in refused(
        arrow(tmp_path / "wide.arrow", table)
    )


@pytest.mark.parametrize("place", range(0, 700, 7))
def test_an_arrow_file_that_lies_never_harms(tmp_path: Path, place: int) -> None:
    """Lengths, offsets and counts anywhere in the file may be anything."""
    path = arrow(tmp_path / "lie.arrow", pa.table({"text": ["ab", "cde"] * 20, "n": [1, 2] * 20}))
    content = bytearray(path.read_bytes())
    content[place : place + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)

    found = outcome(lambda: len(list(read_rows(path, path.name))))

    assert found <= 40 if isinstance(found, int) else "lie.arrow" in found


# -- text ----------------------------------------------------------------------------------------


def test_a_hundred_thousand_columns_in_one_row_are_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("text,more\na,b\n" + "x," * 100_000 + "\nc,d\n")

    found = [row for _, row in read_rows(path, path.name)]

    assert [isinstance(row, Broken) for row in found] == [False, True, False]
    assert len(str(found[1])) < 2000


@pytest.mark.parametrize(
    "line",
    ["{", "[", '{"a":', '{"a": [1,', '{"a": "', "[1, [", "}", '"', '{"a": {"b": }', "[" * 500],
)
@pytest.mark.parametrize("begin", ["[\n", "{\n", ""])
def test_a_file_of_broken_values_ends_in_time(tmp_path: Path, line: str, begin: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(begin + f"{line}\n" * (1_500_000 // (len(line) + 1)))

    found = outcome(lambda: count_rows(path, path.name))

    assert isinstance(found, int) or "bad.json" in found


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({f"c{number}": {"0": "x"} for number in range(100_000)}),
        json.dumps({f"c{number}": ["x"] for number in range(100_000)}),
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "[" * 5_000_000,
        '[{"a": "' + "\\" * 5_000_000,
    ],
)
def test_a_deep_or_wide_value_ends_in_time(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)

    found = outcome(lambda: count_rows(path, path.name))

    assert isinstance(found, int) or "odd.json" in found


def test_a_huge_object_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    path.write_text('{"text": "' + "x" * 70_000_000 + '"}')

    with pytest.raises(DataError, match="is longer than 64,000,000 characters"):
        list(read_rows(path, path.name))
