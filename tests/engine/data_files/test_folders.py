"""Folders: which files are for training, which are held out, and which are left out."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from backend.engine.data_files.sources import Source, open_source
from backend.engine.data_files.splits import choose, split_of
from backend.errors import DataError
from tests.engine.written_files import read, write


def made(folder: Path, *names: str) -> Path:
    """Write files with one row each, their own path."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, [{"text": name}])
    return folder


def parts(source: Source) -> tuple[list[str], list[str]]:
    """Return the rows of the training tables and of those that are held out."""
    training, held_out = (
        [row["text"] for table in tables for _, row in table.rows()]
        for tables in (source.tables, source.held_out)
    )
    return training, held_out


NOTHING: list[str] = []


@pytest.mark.parametrize(
    ("names", "training", "held_out"),
    [
        (["train.jsonl", "test.csv"], ["train.jsonl"], ["test.csv"]),
        (["train.jsonl", "valid.json", "test.csv"], ["train.jsonl"], ["valid.json"]),
        (["my-train.csv", "my-dev.csv"], ["my-train.csv"], ["my-dev.csv"]),
        (["training_set.csv", "eval_set.csv"], ["training_set.csv"], ["eval_set.csv"]),
        (["Train.jsonl", "VAL.jsonl"], ["Train.jsonl"], ["VAL.jsonl"]),
        (["train1.jsonl", "train2.jsonl"], ["train1.jsonl", "train2.jsonl"], NOTHING),
        (["a.jsonl", "b.csv"], ["a.jsonl", "b.csv"], NOTHING),
        (["a.jsonl", "test.jsonl"], ["a.jsonl"], ["test.jsonl"]),
        (["latest.jsonl", "contest.jsonl"], ["contest.jsonl", "latest.jsonl"], NOTHING),
        (["train_test.jsonl", "b.jsonl"], ["b.jsonl", "train_test.jsonl"], NOTHING),
        (["test.jsonl"], ["test.jsonl"], NOTHING),
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
             "data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            ["data/validation-00000-of-00001.parquet"],
        ),
        (["train/a.jsonl", "train/b.csv", "test/a.jsonl"],
         ["train/a.jsonl", "train/b.csv"], ["test/a.jsonl"]),
        (["en/train/x.csv", "en/test/x.csv"], ["en/train/x.csv"], ["en/test/x.csv"]),
        (["train/test_questions.jsonl", "train/b.jsonl"], ["train/b.jsonl"],
         ["train/test_questions.jsonl"]),
    ],
)  # fmt: skip
def test_files_are_told_apart_by_the_names_of_splits(
    tmp_path: Path, names: list[str], training: list[str], held_out: list[str]
) -> None:
    source = open_source(str(made(tmp_path / "set", *names)))

    assert parts(source) == (training, held_out)


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (["a.jsonl", "b.jsonl"], ("The training data of set: a.jsonl, b.jsonl.",)),
        (
            ["main/train-00000-of-00001.jsonl", "socratic/train-00000-of-00001.jsonl"],
            (
                "The training data of set: main/train-00000-of-00001.jsonl, "
                "socratic/train-00000-of-00001.jsonl.",
                "set has several data sets, whose rows are mixed: main, socratic. "
                "To train on one alone, choose its folder or its files.",
            ),
        ),
        (
            ["train_gen-00000-of-00001.jsonl", "train_sft-00000-of-00001.jsonl"],
            (
                "The training data of set: train_gen-00000-of-00001.jsonl, "
                "train_sft-00000-of-00001.jsonl.",
                "set has several data sets, whose rows are mixed: gen, sft. "
                "To train on one alone, choose its folder or its files.",
            ),
        ),
        (
            ["en/train/x.jsonl", "en/train/y.jsonl"],
            ("The training data of set: en/train/x.jsonl, en/train/y.jsonl.",),
        ),
        (
            ["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"],
            (
                "The training data of set: train-00000-of-00003.jsonl, train-00002-of-00003.jsonl.",
                "Parts of set are missing, so their rows are not used: train-00001-of-00003.jsonl.",
            ),
        ),
        (
            ["train-00001-of-09000.jsonl"],
            (
                "Parts of set are missing, so their rows are not used: train-00000-of-09000.jsonl, "
                "train-00002-of-09000.jsonl, train-00003-of-09000.jsonl and 8,996 more.",
            ),
        ),
        (
            ["data.jsonl", "requirements-dev.txt", "config_a.json", "eval_results.json"],
            (
                "Left out of set, as files of other programs: config_a.json, "
                "eval_results.json, requirements-dev.txt.",
            ),
        ),
        (
            ["requirements.txt", "data/train.jsonl"],
            ("Left out of set, as files of other programs: requirements.txt.",),
        ),
        (["train.jsonl"], ()),
        (["train.jsonl", "val.jsonl"], ("Held out is the validation part of set: val.jsonl.",)),
        (
            ["train.jsonl", "test.jsonl", "val.jsonl"],
            (
                "Held out is the validation part of set: val.jsonl.",
                "The test part of set is not used, so that it is new at the end: test.jsonl.",
            ),
        ),
        (
            ["train.jsonl", *(f"more{number}.jsonl" for number in range(5))],
            (
                "Left out of set, as their names are of no split: more0.jsonl, more1.jsonl, "
                "more2.jsonl and 2 more.",
            ),
        ),
        (["test.jsonl"], ("set has only test data: it is used for training.",)),
        (
            ["a.jsonl", "deep/b.jsonl", "empty/c.png"],
            ("Folders inside set are not read, as it has data files itself: deep.",),
        ),
    ],
)
def test_what_is_held_out_or_left_out_is_said(
    tmp_path: Path, names: list[str], notes: tuple[str, ...]
) -> None:
    folder = tmp_path / "set"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "x"}\n')

    assert open_source(str(folder)).notes == notes


def test_a_folder_of_files_of_other_programs_has_no_data(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(DataError, match="has no data file, only files of other programs: config"):
        open_source(str(tmp_path))


def test_a_file_of_another_format_is_named_with_a_way_on(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "x"}])
    write(tmp_path / "b.jsonl", [{"prompt": "x", "completion": "y"}])

    with pytest.raises(DataError, match=r"a\.jsonl is .*, b\.jsonl is .*choose one of the files"):
        read(tmp_path)


@pytest.mark.parametrize("content", ['{"labels": 1}', '[{"label": 7}]', "[1, 2]"])
def test_a_file_that_is_no_data_is_named_with_a_way_on(tmp_path: Path, content: str) -> None:
    write(tmp_path / "a.jsonl", [{"text": "x"}])
    (tmp_path / "labels.json").write_text(content)

    with pytest.raises(DataError, match=r"labels\.json.*Or take labels\.json out of the folder"):
        read(tmp_path)


def test_a_folder_with_nothing_for_training_is_refused() -> None:
    with pytest.raises(DataError, match="set has parts for validation and for a test, but none"):
        choose(["test.jsonl", "val.jsonl"], "set")


@pytest.mark.parametrize(
    ("name", "split"),
    [("a/b.csv", ""), ("train/b.csv", "training"), ("test/train.csv", "training"),
     ("x.test.jsonl.gz", "test"), ("train-test.csv", ""), ("restrained.csv", "")],
)  # fmt: skip
def test_a_split_is_a_whole_word(name: str, split: str) -> None:
    assert split_of(name) == split


def test_held_out_rows_are_never_learned(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}"} for number in range(60)]
    write(tmp_path / "train.jsonl", rows[:50])
    write(tmp_path / "validation.jsonl", rows[45:])

    found = read(tmp_path, eval_share=0.5)

    assert [document.text for document in found.train] == [row["text"] for row in rows[:45]]
    assert [document.text for document in found.held_out] == [row["text"] for row in rows[45:]]


def test_folders_are_read_down_to_a_depth(tmp_path: Path) -> None:
    made(tmp_path / "set", "a/b/c/one.jsonl", "a/b/c/d/two.jsonl", ".git/three.jsonl")

    assert parts(open_source(str(tmp_path / "set"))) == (["a/b/c/one.jsonl"], [])


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_link_inside_a_folder_never_leaves_it(tmp_path: Path, is_folder: bool) -> None:
    made(tmp_path, "secret/train.jsonl", "set/data/train.jsonl")
    if is_folder:
        (tmp_path / "set" / "more").symlink_to(tmp_path / "secret")
        assert parts(open_source(str(tmp_path / "set")))[0] == ["set/data/train.jsonl"]
        return
    (tmp_path / "set/data/val.jsonl").symlink_to(tmp_path / "secret/train.jsonl")
    with pytest.raises(DataError, match="is a link to a file outside the folder"):
        open_source(str(tmp_path / "set"))


# -- folders that `datasets` wrote ---------------------------------------------------------------


def saved(folder: Path, *, splits: bool = True) -> Path:
    rows = [{"text": f"row {number}", "n": [number]} for number in range(60)]
    train, test = Dataset.from_list(rows[:50]), Dataset.from_list(rows[50:])
    if splits:
        DatasetDict({"train": train, "test": test}).save_to_disk(
            str(folder), num_shards={"train": 2, "test": 1}
        )
    else:
        train.save_to_disk(str(folder), num_shards=2)
    return folder


def test_a_saved_data_set_with_splits_is_read(tmp_path: Path) -> None:
    source = open_source(str(saved(tmp_path / "set")))

    training, held_out = parts(source)
    assert training == [f"row {number}" for number in range(50)]
    assert held_out == [f"row {number}" for number in range(50, 60)]
    assert [table.file for table in source.tables] == [
        "train/data-00000-of-00002.arrow",
        "train/data-00001-of-00002.arrow",
    ]
    assert sum(table.count() for table in source.tables) == 50


def test_a_saved_data_set_without_splits_is_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", splits=False)
    (folder / "cache-1234.arrow").write_bytes(b"no part of it")

    assert len(parts(open_source(str(folder)))[0]) == 50


def test_saved_data_sets_in_the_folders_of_splits_are_read(tmp_path: Path) -> None:
    saved(tmp_path / "set" / "train", splits=False)
    saved(tmp_path / "set" / "valid", splits=False)

    assert [len(rows) for rows in parts(open_source(str(tmp_path / "set")))] == [50, 50]


def test_an_arrow_file_is_read_by_itself(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", splits=False)

    found = read(folder / "data-00000-of-00002.arrow")

    assert [document.text for document in found.train] == [f"row {n}" for n in range(25)]


@pytest.mark.parametrize(
    "name", ["../secret.arrow", "/etc/passwd", "..", "gone.arrow", ".hidden.arrow", "state.json", 7]
)
def test_a_saved_list_of_files_that_leaves_the_folder_is_refused(
    tmp_path: Path, name: object
) -> None:
    folder = saved(tmp_path / "set", splits=False)
    (folder / "data-00000-of-00002.arrow").rename(tmp_path / "secret.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))

    with pytest.raises(
        DataError, match=r"is not one that `datasets` writes|is missing, or no Arrow"
    ):
        open_source(str(folder))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"splits": "train"}', '{"splits": ["../x"]}'])
def test_a_damaged_list_of_splits_is_said(tmp_path: Path, content: str) -> None:
    folder = saved(tmp_path / "set")
    (folder / "dataset_dict.json").write_text(content)

    with pytest.raises(
        DataError, match=r"The dataset_dict\.json in set (cannot be read|is not one)"
    ):
        open_source(str(folder))
