"""Files that come through the page: their kinds, their size, and the names they keep."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from backend import Service, Settings
from backend.errors import DiskFull, InvalidRequest
from tests.backend.conftest import ScriptedRuntime

Engines = list[ScriptedRuntime]


def test_an_upload_keeps_its_own_name_and_is_kept_once(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "upload.tmp"
    source.write_text('{"text": "x"}\n', encoding="utf-8")

    first = service.add_upload(source, "../My Data (1).JSONL")
    again = service.add_upload(source, "My Data (1).JSONL")

    assert first.parent.parent == service.settings.uploads_dir
    assert first.read_bytes() == source.read_bytes()
    assert first.suffix == ".jsonl"
    assert first.name == "My Data (1).jsonl"
    assert list(service.settings.uploads_dir.iterdir()) == [first.parent]
    assert again == first


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("...jsonl", "data.jsonl"),
        (".hidden.csv", "hidden.csv"),
        ("a" * 90 + ".jsonl.gz", "a" * 60 + ".jsonl.gz"),
        ('a:b*"c".json', "a-b--c-.json"),
        ("line\nbreak.csv", "line-break.csv"),
        ("\N{PILE OF POO}" * 90 + ".csv", "\N{PILE OF POO}" * 60 + ".csv"),
        ("Fragen für später.parquet", "Fragen für später.parquet"),
    ],
)
def test_an_odd_upload_name_becomes_one_that_a_file_system_takes(
    service: Service, tmp_path: Path, name: str, kept: str
) -> None:
    source = tmp_path / "upload.tmp"
    source.write_text("{}", encoding="utf-8")

    target = service.add_upload(source, name)

    assert target.name == kept
    assert target.parent.parent == service.settings.uploads_dir
    assert target.is_file()


def test_an_upload_of_another_type_is_refused(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "x"
    source.write_bytes(b"%PDF")

    with pytest.raises(InvalidRequest) as caught:
        service.add_upload(source, "paper.pdf")

    assert str(caught.value) == (
        "paper.pdf is not a data file. Use one of .jsonl, .json, .csv, .tsv, .parquet, .txt, .md, "
        ".ndjson, .jsonlines, .arrow, .gz, .bz2, .xz, .zst, .zip."
    )


def test_an_upload_that_is_too_big_is_refused(engines: Engines, tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    source.write_bytes(b"x" * (1024**2 + 1))
    settings = Settings(workspace=tmp_path / "w", runtime="inline", max_upload_bytes=1024**2)

    with Service(settings) as service, pytest.raises(InvalidRequest, match="larger than 1 MB"):
        service.add_upload(source, "x.jsonl")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def cut_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let copies end as on a full disk: the first half is there, and then an error."""

    def copy(source: Any, target: Any, **kwargs: Any) -> None:
        content = Path(source).read_bytes()
        Path(target).write_bytes(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copy)


def test_an_upload_that_a_full_disk_cut_off_leaves_no_file(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "upload.tmp"
    source.write_text('{"text": "x"}\n' * 6000, encoding="utf-8")

    with monkeypatch.context() as full:
        cut_copies(full)
        with pytest.raises(DiskFull, match=r"Could not write rows\.jsonl: No space left"):
            service.add_upload(source, "rows.jsonl")
    assert files_in(service.settings.uploads_dir) == []

    again = service.add_upload(source, "rows.jsonl")
    assert again.read_bytes() == source.read_bytes()


def test_a_cut_file_of_an_older_version_is_not_taken_for_the_upload(
    service: Service, tmp_path: Path
) -> None:
    source = tmp_path / "upload.tmp"
    source.write_text('{"text": "x"}\n' * 6000, encoding="utf-8")
    kept = service.add_upload(source, "rows.jsonl")
    kept.write_bytes(kept.read_bytes()[:1000])

    again = service.add_upload(source, "rows.jsonl")

    assert again == kept
    assert again.read_bytes() == source.read_bytes()
