"""What `datasets` reads where the name of a data set, or what its repository says, is foreign."""

from pathlib import Path

import datasets
import pytest
from datasets import Features, Image, load_dataset_builder
from datasets.data_files import resolve_pattern
from datasets.utils.file_utils import xjoin

from tests.engine.upstream.still import assert_still


def test_the_name_of_a_format_reads_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.txt").write_text("secret\n")
    monkeypatch.chdir(tmp_path)

    builder = load_dataset_builder("text", cache_dir=str(tmp_path / "cache"))

    files = [str(file) for file in builder.config.data_files["train"]]
    assert_still(
        files == [str(tmp_path / "secret.txt")],
        "what `text` reads",
        "hub_data.py (require_id)",
        datasets,
    )


def test_metadata_of_a_repository_may_name_any_file_of_this_machine(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret\n")

    found = resolve_pattern(str(secret), "hf://datasets/someone/data@main")

    assert_still(
        found == [str(secret)], "paths in metadata", "hub_card.py (require_own_files)", datasets
    )
    assert_still(
        xjoin("hf://datasets/someone/data@main", "/etc") == "/etc",
        "folders in metadata",
        "hub_card.py (require_own_files)",
        datasets,
    )


def test_a_column_of_pictures_opens_the_path_in_it(tmp_path: Path) -> None:
    example = {"text": {"path": str(tmp_path / "gone.png"), "bytes": None}}
    try:
        Features({"text": Image()}).decode_example(example)
        opened = False
    except FileNotFoundError:
        opened = True

    assert_still(opened, "columns of pictures", "hub_data.py (rows)", datasets)
