"""A workspace in a zip: what travels, what stays, and who may take it."""

import zipfile
from pathlib import Path

import pytest

from backend import Service
from backend.errors import InvalidRequest, NotFound, Stopped, Unsupported
from tests.backend.workspaces import Make, add_run, make, there, zipped

__all__ = ["make", "there", "zipped"]
SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


def test_an_export_says_what_is_in_it(there: Service, tmp_path: Path) -> None:
    target = tmp_path / "out" / "workspace.zip"

    exported = there.export_workspace(target)

    assert (exported.adapters, exported.runs, exported.left_out) == (2, 2, [])
    assert exported.bytes == target.stat().st_size
    names = set(zipfile.ZipFile(target).namelist())
    assert exported.files == len(names) - 1  # and the manifest
    assert not any("checkpoint" in name or "/best/" in name for name in names)
    assert sum(name.endswith("note.txt") for name in names) == 1


def test_checkpoints_are_a_choice(there: Service, zipped: Path) -> None:
    names = zipfile.ZipFile(zipped).namelist()

    assert sum("checkpoints/checkpoint-2/optimizer.pt" in name for name in names) == 2
    assert sum("best/optimizer.pt" in name for name in names) == 2


def test_logs_tokens_uploads_and_secrets_stay(there: Service, tmp_path: Path) -> None:
    workspace, run = there.settings.workspace, there.runs.all()[0]
    for name in (
        "tokens/a.npy", "temporary/x/a.json", "uploads/d/a.jsonl", "exports/a.zip", "worker.log",
        "merged/m/config.json", "copies/c/adapter_config.json", "timings.json", "token",
        f"runs/{run.id}/output.log", f"runs/{run.id}/launch.json", f"runs/{run.id}/result.json",
        f"runs/{run.id}/launch.log", f"runs/{run.id}/failed-2.json", f"runs/{run.id}/control",
        f"runs/{run.id}/checkpoints/.partial/a.json", "adapters/.trash/ad_000000/a.json",
    ):  # fmt: skip
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(SECRET)
    target = tmp_path / "a.zip"

    there.export_workspace(target, checkpoints=True)

    with zipfile.ZipFile(target) as archive:
        for name in archive.namelist():
            assert SECRET.encode() not in archive.read(name), name


def test_what_is_going_on_or_a_link_is_left_out_and_said(there: Service, tmp_path: Path) -> None:
    going_on = add_run(there, "shouty", "running")
    private = tmp_path / "private.json"
    private.write_text(SECRET)
    adapter = there.library.get("mix")
    (there.library.folder(adapter.id) / "notes.json").symlink_to(private)

    exported = there.export_workspace(tmp_path / "a.zip")

    assert exported.left_out == [
        f"{adapter.id}/notes.json is a link.",
        "The run shouty is still going on or waiting to begin.",
    ]
    assert exported.runs == 2
    assert going_on.is_alive()


@pytest.mark.parametrize(
    ("name", "said"),
    [("there/a.zip", "is inside"), ("there/runs/a.zip", "is inside"), ("a.tar", "not end in"),
     ("old.zip", "already exists")],
)  # fmt: skip
def test_a_file_that_cannot_be_the_export_is_refused(
    there: Service, tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "old.zip").write_text("mine")

    with pytest.raises(InvalidRequest, match=said):
        there.export_workspace(tmp_path / name)

    assert (tmp_path / "old.zip").read_text() == "mine"


def test_an_export_that_ends_early_leaves_no_file(there: Service, tmp_path: Path) -> None:
    def stop(doing: str, done: float) -> None:
        if done > 0.5:
            raise Stopped("Stopped, as asked.")

    (tmp_path / "out").mkdir()

    with pytest.raises(Stopped):
        there.export_workspace(tmp_path / "out" / "a.zip", progress=stop)

    assert list((tmp_path / "out").iterdir()) == []


# --- who may ---


def test_a_guest_of_a_demo_may_neither_export_nor_import(make: Make, zipped: Path) -> None:
    here = make("here", demo=True, owner="me")
    target = here.settings.exports_dir / "a.zip"

    for attempt in (here.export_workspace, here.import_workspace):
        with pytest.raises(Unsupported, match="shared demo"):
            attempt(target, caller="page")
    assert here.export_workspace(target, caller="owner").adapters == 0


def test_the_page_stays_in_its_folders(make: Make, zipped: Path, tmp_path: Path) -> None:
    here = make("here")

    for attempt in (here.export_workspace, here.import_workspace):
        with pytest.raises(InvalidRequest, match="The page may not use"):
            attempt(zipped, caller="page")


def test_a_file_that_is_not_there_is_a_sentence(make: Make, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no file"):
        make("here").import_workspace(tmp_path / "none.zip")
