"""Compressed files and zips are read like what is in them."""

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from backend.engine.data_files.file_readers import count_rows, read_rows
from backend.engine.data_files.sources import open_source
from backend.errors import DataError
from tests.engine.written_files import read, write

ROWS = [{"prompt": f"q{number}", "completion": f"Größe {number}"} for number in range(60)]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
SUFFIXES = [".jsonl", ".json", ".csv", ".tsv", ".parquet"]


def zipped(path: Path, files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packing", PACK)
def test_every_format_is_read_from_every_compression(
    tmp_path: Path, packing: str, suffix: str
) -> None:
    plain = write(tmp_path / f"data{suffix}", ROWS).read_bytes()
    path = tmp_path / f"DATA{suffix}{packing}"
    path.write_bytes(PACK[packing](plain))

    assert [row for _, row in read_rows(path, path.name)] == ROWS
    assert count_rows(path, path.name) == 60
    assert read(path).rows == 60


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_zip_of_one_file_is_read_like_it(tmp_path: Path, suffix: str) -> None:
    content = write(tmp_path / f"data{suffix}", ROWS).read_bytes()
    path = zipped(
        tmp_path / "data.zip",
        {
            f"rows/data{suffix}": content,
            f"__MACOSX/rows/._data{suffix}": b"\0\5\x16",
            "rows/.DS_Store": b"\0",
            "rows/README.md": b"# Rows",
        },
    )

    (table,) = open_source(str(path)).tables

    assert [row for _, row in table.rows()] == ROWS
    assert table.count() == 60
    assert table.name == f"data{suffix} in data.zip"


def test_a_zip_of_several_files_is_read_like_a_folder(tmp_path: Path) -> None:
    lines = [f'{{"text": "{number}"}}\n'.encode() for number in range(4)]
    names = ["set/train.jsonl", "set/validation.jsonl", "set/test.jsonl", "set/notes.png"]
    path = zipped(tmp_path / "set.zip", dict(zip(names, lines, strict=True)))

    found = read(path)

    assert [document.text for document in found.train] == ["0"]
    assert [document.text for document in found.held_out] == ["1"]
    assert found.notes == (
        "Held out is the validation part of set.zip: validation.jsonl.",
        "The test part of set.zip is not used, so that it is new at the end: test.jsonl.",
    )


@pytest.mark.parametrize("packing", PACK)
def test_joined_compressed_files_are_read_to_the_end(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"data.jsonl{packing}"
    path.write_bytes(PACK[packing](b'{"text": "a"}\n') + PACK[packing](b'{"text": "b"}\n'))

    assert [row for _, row in read_rows(path, path.name)] == [{"text": "a"}, {"text": "b"}]


def test_the_compression_is_found_by_the_content(tmp_path: Path) -> None:
    plain = b'{"text": "a"}\n'
    (tmp_path / "unpacked.jsonl.gz").write_bytes(plain)  # as some browsers save it
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(plain))

    for name in ("unpacked.jsonl.gz", "packed.jsonl"):
        assert [row for _, row in read_rows(tmp_path / name, name)] == [{"text": "a"}]


def test_the_encoding_in_a_compressed_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "data.csv.gz"
    path.write_bytes(gzip.compress("text;more\nGröße;x\n".encode("cp1252")))

    found = read(path)

    assert found.train[0].text == "Größe"
    assert found.notes == (
        'data.csv.gz is read as Windows-1252 (Western European): "Größe;x"',
        "The columns of data.csv.gz are separated by semicolons.",
    )


@pytest.mark.parametrize("packing", PACK)
def test_a_cut_off_file_is_said(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"data.jsonl{packing}"
    path.write_bytes(PACK[packing](b"".join(b'{"text": "%d"}\n' % n for n in range(3000)))[:-9])

    with pytest.raises(DataError, match="is damaged or locked and cannot be unpacked"):
        list(read_rows(path, path.name))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("data.gz", "The name of data.gz does not say what is inside. Rename it, for example"),
        ("data.tar.gz", "The name of data.tar.gz does not say what is inside."),
        ("table.xlsx", "table.xlsx is not a data file. Save the table as CSV."),
    ],
)
def test_a_name_that_does_not_say_the_format_is_refused(
    tmp_path: Path, name: str, sentence: str
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"x"))

    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path / name))

    assert str(caught.value).startswith(sentence)


def test_an_excel_table_under_the_name_of_csv_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "table.csv", {"xl/workbook.xml": b"<x/>"})

    with pytest.raises(DataError, match=r"an Excel or Word file.*Save an Excel table as CSV\."):
        list(read_rows(path, path.name))


def test_a_zip_without_data_is_said(tmp_path: Path) -> None:
    path = zipped(tmp_path / "cats.zip", {"cat.png": b"x"})

    with pytest.raises(DataError, match=r"^The zip cats\.zip has no data file\. Use \.jsonl"):
        open_source(str(path))


def test_a_file_in_a_zip_is_named_where_a_row_is_bad(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a.jsonl": b'{"text": "x"}\n5\n', "b.jsonl": b""})

    (problem,) = read(path).problems

    assert problem.place == "a.jsonl, row 2"


def test_parquet_in_a_zip_leaves_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    parquet.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "data.parquet")
    content = (tmp_path / "data.parquet").read_bytes()
    (table,) = open_source(str(zipped(tmp_path / "a.zip", {"data.parquet": content}))).tables

    reading = iter(table.rows())
    assert next(reading) == (1, {"text": "a"})
    assert len(list(copies.iterdir())) == 1
    reading.close()

    assert list(copies.iterdir()) == []
