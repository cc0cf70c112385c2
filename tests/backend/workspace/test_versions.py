"""Workspaces of other versions: what opening one does, what it keeps, and what is refused."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from backend import Service, Settings
from backend.errors import DiskFull, Unsupported
from backend.settings import PROJECT, VERSION
from backend.workspace.versions import FILE, Step, open_workspace
from tests.backend.conftest import ScriptedRuntime

Engines = list[ScriptedRuntime]


def stamp(workspace: Path) -> dict[str, object]:
    return json.loads((workspace / FILE).read_text())


def test_the_version_is_the_one_that_the_project_has() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))

    assert project["project"]["version"] == VERSION


def test_a_new_workspace_gets_its_format_without_a_word(engines: Engines, tmp_path: Path) -> None:
    with Service(Settings(workspace=tmp_path / "w", runtime="inline")) as service:
        assert service.opening == []
    assert stamp(tmp_path / "w") == {"format": 1, "app_version": VERSION}


def test_one_of_an_earlier_version_is_said_and_only_the_file_added(tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text("{}")

    said = open_workspace(tmp_path)

    assert said == [
        "This workspace comes from an earlier version: workspace.json was added. "
        "Nothing else changed."
    ]
    assert (tmp_path / "session.json").read_text() == "{}"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["session.json", FILE]
    assert open_workspace(tmp_path) == []


def test_the_page_shows_what_was_done(engines: Engines, tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text("{}")

    with Service(Settings(workspace=tmp_path, runtime="inline")) as service:
        notice = service.snapshot().notice

    assert notice is not None
    assert notice.text.startswith("This workspace comes from an earlier version")


def test_one_of_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"format": 7, "app_version": "3.0", "more": 1}')

    with pytest.raises(Unsupported, match=r"has format 7, written by version 3\.0") as caught:
        Service(Settings(workspace=tmp_path, runtime="inline"))

    assert "Update the app" in str(caught.value)
    assert stamp(tmp_path)["more"] == 1


def test_an_unreadable_format_is_refused_and_not_written_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"form')

    with pytest.raises(Unsupported, match="cannot be read"):
        open_workspace(tmp_path)

    assert (tmp_path / FILE).read_text() == '{"form'


@pytest.mark.parametrize("command", [["app.py", "--no-browser"], ["-m", "backend", "load-model"]])
def test_the_refusal_is_a_sentence_on_the_command_line(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / FILE).write_text('{"format": 7}')

    done = subprocess.run(
        [sys.executable, *command],
        cwd=PROJECT,
        env={**os.environ, "WORKSPACE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 1
    assert "has format 7" in done.stderr
    assert "Traceback" not in done.stderr


# --- steps ---


def turn_notes(workspace: Path) -> None:
    (workspace / "notes" / "a.txt").write_text("new")
    (workspace / "queue.json").write_text("new")
    (workspace / "extra.json").write_text("new")


TURN = Step(2, "Notes were turned.", ("notes", "queue.json", "extra.json"), turn_notes)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("old")
    (tmp_path / "queue.json").write_text("old")
    return tmp_path


def content(workspace: Path) -> dict[str, str]:
    return {
        str(path.relative_to(workspace)): path.read_text()
        for path in workspace.rglob("*")
        if path.is_file()
    }


def test_a_step_keeps_a_copy_and_says_so(old: Path) -> None:
    said = open_workspace(old, steps=[TURN], newest=2)

    assert said[0] == "This workspace comes from an earlier version: workspace.json was added."
    assert said[1] == "Notes were turned. A copy of what was changed is in before-format-2."
    kept = content(old / "before-format-2")
    assert kept == {"notes/a.txt": "old", "queue.json": "old"}
    assert (old / "notes" / "a.txt").read_text() == "new"
    assert stamp(old)["format"] == 2
    assert open_workspace(old, steps=[TURN], newest=2) == []


def test_steps_follow_one_another_from_where_the_workspace_is(old: Path) -> None:
    taken = []
    steps = [Step(n, f"Step {n}.", (), lambda _, n=n: taken.append(n)) for n in (2, 3, 4)]
    (old / FILE).write_text('{"format": 2}')

    open_workspace(old, steps=steps, newest=4)

    assert taken == [3, 4]


def test_a_step_that_fails_leaves_what_was_there(old: Path) -> None:
    def fail(workspace: Path) -> None:
        turn_notes(workspace)
        raise OSError(28, "No space left on device")

    before = content(old)

    with pytest.raises(DiskFull):
        open_workspace(old, steps=[TURN._replace(apply=fail)], newest=2)

    assert content(old) == before


def test_a_step_that_was_cut_off_begins_again_from_its_copy(old: Path) -> None:
    """As after a power cut: the copy is there, the change half done, the format still the old."""
    (old / FILE).write_text('{"format": 1}')
    (old / "before-format-2" / "notes").mkdir(parents=True)
    (old / "before-format-2" / "notes" / "a.txt").write_text("old")
    (old / "before-format-2" / "queue.json").write_text("old")
    (old / "notes" / "a.txt").write_text("half")
    seen = []

    def look(workspace: Path) -> None:
        seen.append((workspace / "notes" / "a.txt").read_text())
        turn_notes(workspace)

    open_workspace(old, steps=[TURN._replace(apply=look)], newest=2)

    assert seen == ["old"]
    assert content(old / "before-format-2")["notes/a.txt"] == "old"
