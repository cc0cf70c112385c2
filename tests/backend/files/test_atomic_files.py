"""Writing to disk leaves the old content or the new, whatever fails on the way."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from backend.errors import DiskFull, InvalidRequest
from backend.files.atomic_files import disk_error, new_file, new_folder, write_text


def fail_with_full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "status.json"
    write_text(target, "old")

    write_text(target, "new")

    assert target.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["status.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    target = tmp_path / "status.json"
    write_text(target, "old")
    monkeypatch.setattr(os, call, fail_with_full_disk)

    with pytest.raises(DiskFull) as caught:
        write_text(target, "new")

    assert str(caught.value) == (
        "Could not write status.json: No space left on device. Free some disk space or choose "
        "another workspace, then try again. What was saved before is unchanged."
    )
    assert target.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["status.json"]


def test_a_file_in_a_folder_that_is_gone_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"Could not write status\.json: No such file"):
        write_text(tmp_path / "gone" / "status.json", "new")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "adapter") as folder:
        (folder / "a").write_text("1", encoding="utf-8")
        assert not (tmp_path / "deep" / "adapter").exists()

    assert names(tmp_path / "deep") == ["adapter"]
    assert names(tmp_path / "deep" / "adapter") == ["a"]


def test_a_folder_is_replaced_and_nothing_of_the_old_one_stays(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("1", encoding="utf-8")

    with new_folder(target, replace=True) as folder:
        (folder / "new").write_text("2", encoding="utf-8")

    assert names(target) == ["new"]
    assert names(tmp_path) == ["adapter"]


def test_a_folder_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("1", encoding="utf-8")

    with pytest.raises(InvalidRequest, match="adapter exists and is not an empty folder"):
        new_folder(target).__enter__()

    assert names(target) == ["old"]
    assert names(tmp_path) == ["adapter"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_comes_while_a_folder_is_filled_is_not_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "adapter"

    def fill() -> None:
        with new_folder(target) as folder:
            (folder / "new").write_text("2", encoding="utf-8")
            if kind == "folder":
                target.mkdir()
                (target / "old").write_text("1", encoding="utf-8")
            elif kind == "file":
                target.write_text("1", encoding="utf-8")
            else:
                target.symlink_to(tmp_path / "nowhere")

    with pytest.raises(InvalidRequest, match="adapter exists and is not an empty folder"):
        fill()

    assert names(tmp_path) == ["adapter"]
    assert target.is_symlink() == (kind == "link")
    assert target.is_file() == (kind == "file")
    assert kind != "folder" or names(target) == ["old"]


def test_an_empty_folder_is_filled_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")

    with new_folder(tmp_path / "link") as folder:
        (folder / "new").write_text("2", encoding="utf-8")

    assert names(tmp_path / "empty") == ["new"]
    assert names(tmp_path) == ["empty", "link"]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_filled_leaves_the_old_one(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("1", encoding="utf-8")

    def fill() -> None:
        with new_folder(target, replace=True) as folder:
            (folder / "new").write_text("2", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        fill()

    assert names(target) == ["old"]
    assert names(tmp_path) == ["adapter"]


def test_a_full_disk_while_filling_a_folder_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskFull, match="Could not write adapter: No space left"),
        new_folder(tmp_path / "adapter"),
    ):
        fail_with_full_disk()

    assert names(tmp_path) == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("1", encoding="utf-8")
    original, calls = os.replace, []

    def replace(source: Any, destination: Any) -> None:
        calls.append(source)
        if len(calls) == failing:
            fail_with_full_disk()
        original(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(DiskFull), new_folder(target, replace=True) as folder:
        (folder / "new").write_text("2", encoding="utf-8")

    assert names(target) == ["old"]
    assert names(tmp_path) == ["adapter"]


def test_a_new_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "adapter.zip"
    target.write_text("old", encoding="utf-8")

    def fill() -> None:
        with new_file(target) as partial:
            partial.write_text("ha", encoding="utf-8")
            fail_with_full_disk()

    with pytest.raises(DiskFull):
        fill()

    assert target.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["adapter.zip"]


def test_a_disk_that_is_full_only_when_files_are_synced_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fail_with_full_disk)

    with pytest.raises(DiskFull), new_folder(tmp_path / "adapter") as folder:
        (folder / "weights").write_text("1", encoding="utf-8")

    assert names(tmp_path) == []


def test_a_folder_that_cannot_even_be_made_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "mkdir", fail_with_full_disk)

    with pytest.raises(DiskFull, match="Could not write adapter: No space left"):
        new_folder(tmp_path / "deep" / "adapter").__enter__()


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()

    with new_folder(tmp_path / "copy") as folder:
        (folder / "mine").write_text("1", encoding="utf-8")

    assert names(tmp_path / "copy") == ["mine"]


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "Free some disk space"),
        (errno.EDQUOT, "Free some disk space"),
        (errno.EROFS, "Make its folder writable or choose another workspace"),
        (errno.EACCES, "Make its folder writable or choose another workspace"),
    ],
)
def test_what_to_do_follows_the_reason(number: int, cure: str) -> None:
    error = disk_error(OSError(number, os.strerror(number)), Path("status.json"))

    assert cure in error.cure


def test_the_reason_of_a_folder_that_cannot_be_copied_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(shutil.Error) as caught:
        shutil.copytree(tmp_path / "a", tmp_path / "b")

    said = str(disk_error(caught.value, tmp_path / "b").what)

    assert said.startswith("Could not write b: [Errno 2] No such file or directory")
    assert "[(" not in said
