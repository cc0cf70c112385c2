"""A file whose name says something else than its content is told what it is."""

from pathlib import Path

import pytest

from backend.engine.data import dataset
from backend.engine.data_files.file_type import SIGNATURES, real_kind
from backend.errors import DataError, NotFound


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "cat.jsonl",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            "cat.jsonl is a PNG picture, although its name says otherwise. "
            "Use a JSONL, JSON, CSV, TSV, Parquet or text file.",
        ),
        (
            "paper.json",
            b"%PDF-1.7\nplain so far",
            "paper.json is a PDF document, although its name says otherwise. "
            "Use a JSONL, JSON, CSV, TSV, Parquet or text file.",
        ),
        (
            "page.csv",
            b"\n<!DOCTYPE html><p>404</p>",
            "page.csv is a web page, although its name says otherwise. "
            "Use a JSONL, JSON, CSV, TSV, Parquet or text file.",
        ),
    ],
)
def test_a_file_under_a_false_name_says_what_it_is(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError) as caught:
        dataset.read(str(path), eval_share=0.1, seed=0)

    assert str(caught.value) == sentence


@pytest.mark.parametrize(("signature", "kind"), SIGNATURES)
def test_each_signature_is_known(tmp_path: Path, signature: bytes, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(signature + b" and more")

    assert real_kind(path) == kind


@pytest.mark.parametrize("content", [b"", b"text", "Grüße".encode(), b"[1]", b"\xef\xbb\xbfa,b\n"])
def test_text_is_no_other_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    assert real_kind(path) == ""


def test_a_damaged_parquet_file_is_told_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 not really")

    with pytest.raises(DataError) as caught:
        dataset.read(str(path), eval_share=0.1, seed=0)

    assert str(caught.value) == (
        "data.parquet is a damaged Parquet file: its content cannot be read to the end. "
        "Write or download it again, and upload it once more."
    )
    assert caught.value.details == ""


def test_an_upload_that_is_gone_is_named_as_its_owner_does(tmp_path: Path) -> None:
    gone = tmp_path / "uploads" / "0123456789ab" / "my rows.csv"

    with pytest.raises(NotFound) as caught:
        dataset.read(str(gone), eval_share=0.1, seed=0)

    assert str(caught.value) == "The upload 'my rows.csv' is gone. Upload the file again."
