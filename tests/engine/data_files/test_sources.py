"""Where data comes from, and what is said where there is none."""

import os
from pathlib import Path

import pytest

from backend.engine.data import dataset
from backend.engine.data_files.sources import count_some, open_source
from backend.errors import DataError, NotFound
from backend.settings import STARTER
from tests.engine.written_files import SHAPES, read, write


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"

    with pytest.raises(NotFound) as caught:
        read(path)

    assert str(caught.value) == (
        f"There is no file {str(path)!r}. Check the path, or upload the file."
    )


@pytest.mark.parametrize("name", ["nothing", "../../backend", "/etc", ""])
def test_an_unknown_bundled_set_lists_the_known_ones(name: str) -> None:
    known = sorted(path.parent.name for path in STARTER.glob("data/*/train.jsonl"))

    with pytest.raises(NotFound) as caught:
        dataset.read(f"starter:{name}", eval_share=0.1, seed=0)

    assert str(caught.value) == (
        f"There is no bundled data set {name!r}. Bundled: {', '.join(known)}."
    )


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "deeper").mkdir(parents=True)
    write(folder / "b.csv", [{"text": "three"}])
    write(folder / "a.jsonl", [{"text": "one"}, {"text": 2}])
    for left_out in (".hidden.jsonl", "deeper/c.jsonl", "notes.pdf", "README.md"):
        (folder / left_out).write_text('{"text": "no"}', encoding="utf-8")

    found = read(folder)

    assert [document.text for document in found.train] == ["one", "three"]
    assert [(problem.place, problem.what) for problem in found.problems] == [
        ("a.jsonl, row 2", "text is 2, not text")
    ]
    with pytest.raises(DataError) as caught:
        found.require_good()
    assert str(caught.value) == (
        "1 of 3 rows cannot be used: a.jsonl, row 2: text is 2, not text. "
        "Fix or remove them, or choose to leave bad rows out."
    )


def test_an_empty_file_among_others_does_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [SHAPES["text"]])
    (tmp_path / "b.jsonl").write_bytes(b"")

    assert len(read(tmp_path).train) == 1


def test_a_folder_without_data_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()

    with pytest.raises(DataError) as caught:
        read(folder)

    assert str(caught.value) == (
        "The folder rows has no data file. Use .jsonl, .json, .csv, .tsv, .parquet, .txt, .md, "
        ".ndjson, .jsonlines, .arrow."
    )


def test_a_folder_of_different_shapes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "a.jsonl", [SHAPES["messages"]])
    write(folder / "b.csv", [SHAPES["text"]])

    with pytest.raises(DataError) as caught:
        read(folder)

    assert str(caught.value) == (
        "The files in rows have different formats: a.jsonl is messages, b.csv is text. "
        "Put files of one format into a folder, or choose one of the files itself."
    )


def test_a_link_out_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.jsonl", [SHAPES["text"]])
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(secret)

    with pytest.raises(DataError) as caught:
        read(folder)

    assert str(caught.value) == (
        "a.jsonl in the folder rows is a link to a file outside the folder. "
        "Put the file itself into the folder."
    )


def test_a_pipe_among_the_files_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    os.mkfifo(tmp_path / "b.jsonl")

    with pytest.raises(DataError, match=r"b\.jsonl is a FIFO, not a file"):
        open_source(str(tmp_path))


def test_a_link_to_nothing_among_the_files_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")

    with pytest.raises(DataError, match="is a link to a file that does not exist"):
        open_source(str(tmp_path))


def test_a_folder_with_the_name_of_a_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    (tmp_path / "old.json").mkdir()

    assert [table.name for table in open_source(str(tmp_path)).tables] == ["a.jsonl"]


def test_counting_is_given_up_after_a_time(tmp_path: Path) -> None:
    for name, start in (("a.csv", "text\n"), ("b.jsonl", "")):
        line = '{"text": "x"}\n' if name == "b.jsonl" else "x\n"
        (tmp_path / name).write_text(start + line * 5000)
    tables = open_source(str(tmp_path)).tables

    rows, is_all = count_some(tables, seconds=0)

    assert 0 < rows < 10_000
    assert not is_all
    assert count_some(tables) == (10_000, True)
