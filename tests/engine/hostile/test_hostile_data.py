"""Data that would hang the app or fill its memory: bounded before it is read."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from backend.engine.data_files.file_readers import Broken, count_rows, read_rows
from backend.errors import DataError, WorkbenchError
from backend.files import read_limits
from backend.settings import PROJECT
from tests.engine.written_files import read

LONG = "x" * 13_000_000
TOO_LONG = "it is longer than 16,000,000 characters: split it into shorter examples"


def rows(path: Path) -> list[Any]:
    return [row for _, row in read_rows(path, path.name)]


def repeated(text: str, times: int) -> pa.Array:
    indices = pa.array([0] * times, pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array([text]))


def in_one_list(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def write(path: Path, column: pa.Array, **options: Any) -> Path:
    # Without Arrow's own schema, readers see texts and not a dictionary of them.
    table = pa.table({"text": column})
    parquet.write_table(table, path, compression="zstd", store_schema=False, **options)
    return path


def memory_of_reading(path: Path) -> tuple[int, str]:
    """Return by how many bytes a process grows that reads a file, and why it was refused."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from backend.engine.data_files.file_readers import read_rows\n"
        "from backend.errors import DataError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before, path = peak(), Path(sys.argv[1])\n"
        "try:\n    for row in read_rows(path, path.name): pass\n"
        "except DataError as error: print(error, file=sys.stderr)\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return int(done.stdout), done.stderr


# -- Parquet -------------------------------------------------------------------------------------


def test_a_dictionary_of_one_long_text_is_decoded_a_few_rows_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "flat.parquet", repeated(LONG, 1000))
    assert path.stat().st_size < 1000

    grown, refusal = memory_of_reading(path)

    assert grown < 1 << 30
    assert refusal.startswith(
        "flat.parquet unpacks to more than 2.0 GB, far more than text of its size"
    )


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (
            lambda: in_one_list(repeated(LONG, 100_000)),
            "A row group of bad.parquet may take 1211 GB of memory when it is read, and at most "
            "1.0 GB are allowed. Write it again with smaller row groups, or as JSONL.",
        ),
        (
            lambda: in_one_list(pa.nulls(1_000_001, pa.int8())),
            "A row group of bad.parquet has lists of 1,000,001, and at most 1,000,000 are "
            "read. Write it again with smaller row groups, or as JSONL.",
        ),
        (
            lambda: pa.nulls(1_000_001, pa.bool_()),
            "bad.parquet has 1,000,001 rows, and at most 1,000,000 are read. "
            "Write it again with smaller row groups, or as JSONL.",
        ),
    ],
)
def test_what_a_few_bytes_stand_for_is_refused_before_it_is_decoded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    column: Callable[[], pa.Array],
    sentence: str,
) -> None:
    monkeypatch.setattr(read_limits, "PARQUET_VALUES", 1_000_000)
    monkeypatch.setattr(read_limits, "PARQUET_ROWS", 1_000_000)
    path = write(tmp_path / "bad.parquet", column(), row_group_size=1 << 30)

    with pytest.raises(DataError) as caught:
        rows(path)

    assert str(caught.value) == sentence


def test_pages_that_unpack_to_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_limits, "PARQUET_DECODED_BYTES", 10_000_000)
    path = write(tmp_path / "zeros.parquet", pa.array([LONG]), use_dictionary=False)

    with pytest.raises(DataError, match=r"may take 12 MB of memory .*, and at most 10 MB are"):
        rows(path)


def test_the_footer_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow allocates what the header of a page says, whatever the footer adds up to."""
    monkeypatch.setattr(read_limits, "PARQUET_DECODED_BYTES", 10_000_000)
    path = write(tmp_path / "lie.parquet", pa.array([LONG]), use_dictionary=False)
    true = parquet.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[start:-8].replace(varint(2 * true), varint(2 * 9000))
    path.write_bytes(content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert parquet.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 9000

    with pytest.raises(DataError, match="may take 12 MB of memory when it is read"):
        rows(path)


def varint(value: int) -> bytes:
    """Write a number as Thrift does."""
    found = b""
    while value >= 0x80:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def test_a_list_of_millions_in_one_row_is_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "nulls.parquet", in_one_list(pa.nulls(5_000_000, pa.int8())))

    ((number, row),) = read_rows(path, path.name)

    assert (number, row) == (1, Broken(TOO_LONG, ""))


@pytest.mark.parametrize("cut", [0, 4, 30, 60])
def test_a_damaged_page_is_said(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "data.parquet", pa.array(["some text", "more"] * 100))
    content = bytearray(path.read_bytes())
    content[4 + cut : 24 + cut] = b"\xff" * 20
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"data\.parquet is a damaged Parquet file"):
        rows(path)


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_good_files_are_read_as_arrow_reads_them(tmp_path: Path, codec: str, version: str) -> None:
    path = tmp_path / "good.parquet"
    conversation = [{"role": "user", "content": "Hé"}, {"role": "assistant", "content": None}]
    content = [
        {"messages": conversation * (i % 4), "text": None if i % 7 == 0 else f"{i} " * i, "n": i}
        for i in range(3000)
    ]
    table = pa.Table.from_pylist(content)
    parquet.write_table(
        table, path, compression=codec, row_group_size=700, data_page_version=version,
        data_page_size=2000,
    )  # fmt: skip

    assert rows(path) == content
    assert count_rows(path, path.name) == 3000


def test_texts_that_repeat_their_beginnings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "delta.parquet"
    texts = [f"https://example.org/{i}" for i in range(500)]
    write(path, pa.array(texts), use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")

    assert [row["text"] for row in rows(path)] == texts


# -- lines, cells and lists ----------------------------------------------------------------------


def test_a_line_that_is_too_long_is_a_bad_row_and_those_after_it_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with path.open("w") as file:
        file.write('{"text": "a"}\n{"text": "')
        for _ in range(40):
            file.write("y" * 1_000_000)
        file.write('"}\n{"text": "b"}\n')

    assert rows(path) == [
        {"text": "a"},
        Broken(TOO_LONG, ('{"text": "' + "y" * 100)[:100]),
        {"text": "b"},
    ]
    assert count_rows(path, path.name) == 3
    assert [document.text for document in read(path).train] == ["a", "b"]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv", "data.tsv", "data.txt"])
def test_a_line_of_a_hundred_megabytes_does_not_fill_the_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("w") as file:
        file.write({"data.jsonl": '{"text": "', "data.json": '[{"text": "'}.get(name, ""))
        for _ in range(100):
            file.write("y" * 1_000_000)

    assert memory_of_reading(path)[0] < 200_000_000


@pytest.mark.parametrize("name", ["book.jsonl", "book.json", "book.csv", "book.txt"])
def test_a_book_in_one_line_is_read(tmp_path: Path, name: str) -> None:
    book = "Once upon a time. " * 300_000
    content = {
        "book.jsonl": json.dumps({"text": book}),
        "book.json": json.dumps([{"text": book}]),
        "book.csv": f"text\n{book}\n",
        "book.txt": book,
    }
    path = tmp_path / name
    path.write_text(content[name])

    assert [row["text"].strip() for row in rows(path)] == [book.strip()]


def test_a_list_in_a_json_file_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    with path.open("w") as file:
        file.write("[")
        for number in range(300):
            file.write(f'{", " * (number > 0)}{{"text": "{"z" * 500_000}"}}')
        file.write("]")

    assert memory_of_reading(path)[0] < 100_000_000
    assert count_rows(path, path.name) == 300


def test_an_element_that_is_too_long_ends_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[\n"a",\n["' + "x" * 17_000_000 + '"]]')

    with pytest.raises(DataError) as caught:
        rows(path)

    assert str(caught.value) == (
        "data.json: the value in line 3 is longer than 16,000,000 characters. "
        "Split it into shorter examples, one per line in a .jsonl file."
    )


def test_an_open_quotation_mark_does_not_swallow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('text\n"' + "a line\n" * 3_000_000)

    assert memory_of_reading(path)[0] < 300_000_000
    first, *others = rows(path)

    assert first.what == "its quotation mark is never closed, or closed in a wrong place"
    assert others == [{"text": "a line"}] * 2_999_999


def test_quotation_marks_without_end_are_read_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,more\n" + ('x,"y\n' + 'a,""\n' * 50) * 20_000)
    started = time.process_time()

    found = rows(path)

    assert time.process_time() - started < 60, "Each line is read again for each mark."
    assert len(found) == 20_000 * 51


def test_lines_without_a_blank_one_between_them_are_added_up_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("word\n" * 2_000_000 + "\n" + "longer line\n" * 1_500_000)
    started = time.process_time()

    first, second = rows(path)

    assert time.process_time() - started < 60, "Each line copies all those before it."
    assert len(first["text"]) == 9_999_999
    assert second == Broken(f"{TOO_LONG}, with blank lines between them", "")


def test_a_hundred_thousand_columns_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text(",".join(f"c{i}" for i in range(100_000)) + "\n")
    started = time.process_time()

    with pytest.raises(DataError) as caught:
        rows(path)

    assert time.process_time() - started < 20, "Each column is looked for among all."
    assert str(caught.value) == (
        "wide.csv has 100,000 columns, and at most 10,000 are read. "
        "Leave out the columns that are not needed."
    )


def test_two_thousand_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    names = ["text", *(f"c{i}" for i in range(1999))]
    path.write_text(",".join(names) + "\n" + ",".join("v" for _ in names) + "\n")

    assert read(path).train[0].text == "v"


def test_a_row_with_too_many_keys_is_said(tmp_path: Path) -> None:
    path = tmp_path / "wide.jsonl"
    path.write_text(json.dumps({f"c{i}": 1 for i in range(20_000)}))

    with pytest.raises(DataError, match="The first row has 20,000 columns, and at most 10,000"):
        read(path)


# -- what is no file -----------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def socket_file(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has 100 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".txt"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [(fifo, "a FIFO"), (device, "a device"), (folder, "a folder"), (socket_file, "a socket")],
)
def test_what_is_no_file_is_refused_and_never_waited_for(
    tmp_path: Path, suffix: str, make: Callable[[Path], None], kind: str
) -> None:
    path = tmp_path / f"data{suffix}"
    make(path)
    found: list[str] = []

    def look() -> None:
        for use in (rows, read, lambda path: count_rows(path, path.name)):
            try:
                use(path)
            except WorkbenchError as error:
                found.append(str(error))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(60)

    assert not looking.is_alive(), "It waits for somebody to write."
    assert found[0].startswith(f"data{suffix} is {kind}, not a file.")
    assert len(found) == 3


def test_a_file_that_grows_is_read_as_far_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"text": "a"}\n' * 1000)

    with path.open("a") as log:
        seen = 0
        for _ in read_rows(path, path.name):
            seen += 1
            log.write('{"text": "more"}\n' * 2)
            log.flush()

    assert seen == 1000
