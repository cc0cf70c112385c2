"""A workspace that cannot be used gives one sentence, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backend import Service, Settings
from backend.errors import DiskFull, InvalidRequest
from backend.settings import PROJECT
from tests.backend.conftest import ScriptedRuntime

Engines = list[ScriptedRuntime]


def open_in(workspace: Path) -> None:
    Service(Settings(workspace=workspace, runtime="inline")).close()


def test_a_new_workspace_is_made_and_no_trial_stays(engines: Engines, tmp_path: Path) -> None:
    open_in(tmp_path / "deep" / "workspace")

    assert not list(tmp_path.rglob(".trial*"))


@pytest.mark.parametrize("name", ["", "adapters", "runs", "tokens", "uploads", "merged"])
def test_a_file_in_place_of_a_folder_is_named(engines: Engines, tmp_path: Path, name: str) -> None:
    place = tmp_path / "workspace" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine", encoding="utf-8")

    with pytest.raises(InvalidRequest) as caught:
        open_in(tmp_path / "workspace")

    assert str(caught.value) == (
        f"{place} is a file, but a folder is needed there. Move the file away or choose another "
        "workspace (--workspace FOLDER)."
    )
    assert engines == []
    assert place.read_text(encoding="utf-8") == "mine"


def test_a_file_above_the_workspace_is_named(engines: Engines, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")

    with pytest.raises(InvalidRequest, match="file is a file, but a folder is needed there"):
        open_in(tmp_path / "file" / "workspace")


@pytest.mark.parametrize("name", ["", "adapters", "runs"])
def test_a_link_to_nothing_is_named(engines: Engines, tmp_path: Path, name: str) -> None:
    place = tmp_path / "workspace" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(tmp_path / "gone")

    with pytest.raises(InvalidRequest, match=r"is a link to .*gone, which does not exist"):
        open_in(tmp_path / "workspace")


@pytest.mark.parametrize(
    ("number", "reason"), [(28, "No space left on device"), (30, "Read-only file system")]
)
def test_a_workspace_that_cannot_be_written_is_named(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, reason)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskFull) as caught:
        open_in(tmp_path / "workspace")

    assert str(caught.value).startswith(
        f"The workspace {tmp_path / 'workspace'} cannot be used: no file can be written in "
        f"{tmp_path / 'workspace'} ({reason})."
    )
    assert "--workspace FOLDER" in caught.value.cure
    assert not list(tmp_path.rglob(".trial*"))


def test_a_log_that_is_a_folder_is_named(engines: Engines, tmp_path: Path) -> None:
    (tmp_path / "worker.log").mkdir()

    with pytest.raises(InvalidRequest, match=r"worker\.log is not a file"):
        open_in(tmp_path)


@pytest.mark.parametrize(
    "command", [["app.py", "--no-browser", "--port", "7986"], ["-m", "backend"]]
)
def test_programs_say_one_sentence_and_exit(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    words = ["unload-model"] if "-m" in command else []

    ended = subprocess.run(
        [sys.executable, *command, "--workspace", str(tmp_path / "file"), *words],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert ended.returncode == 1
    assert "is a file, but a folder is needed there." in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_folder_where_not_even_removing_works_is_named(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(DiskFull, match="Read-only file system"):
        open_in(tmp_path / "workspace")
