"""A workspace of another machine: what arrives, how collisions end, and all or nothing."""

import errno
import json
import os
import time
import zipfile
from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from backend.errors import DiskFull, InvalidRequest, VerificationFailed
from backend.runs.training_queue import Waiting
from backend.workspace.session_recipe import Recipe
from tests.backend.workspaces import (
    Make,
    add_adapter,
    add_run,
    content,
    make,
    there,
    wait_there,
    zipped,
)

__all__ = ["make", "there", "zipped"]


def test_everything_arrives_as_it_was(there: Service, zipped: Path, make: Make) -> None:
    here = make("here")

    came = here.import_workspace(zipped)

    assert sorted(came.adapters) == ["mix", "pirate"]
    assert sorted(came.runs) == ["pirate", "polite"]
    assert (came.left_out, came.renamed, came.already_there, came.missing_paths) == ([],) * 4
    assert here.library.all() == there.library.all()
    assert [s.id for s in here.runs.summaries()] == [s.id for s in there.runs.summaries()]
    assert here.runs.summaries()[1].note == "the good one"
    for info in here.library.all():
        assert content(here.library.folder(info.id)) == content(there.library.folder(info.id))
    for run in there.runs.all():
        same = here.runs.get(run.id)
        assert same.events_file.read_bytes() == run.events_file.read_bytes()
        assert content(same.checkpoints) == content(run.checkpoints)
        assert (same.status().pid, same.status().host) == (0, "")
    assert came.verified == len(zipfile.ZipFile(zipped).namelist()) - 1 - 2 - 2 * 2


def test_the_page_sees_what_came(zipped: Path, make: Make) -> None:
    here = make("here")
    before = here.snapshot().version

    here.import_workspace(zipped)

    snapshot = here.snapshot()
    assert snapshot.version > before
    assert {run.name for run in snapshot.runs} == {"pirate", "polite"}
    assert next(run for run in snapshot.runs if run.name == "polite").resumable


def test_a_second_import_finds_everything_there(zipped: Path, make: Make) -> None:
    here = make("here")
    here.import_workspace(zipped)
    before = content(here.settings.workspace)

    came = here.import_workspace(zipped)

    assert (came.adapters, came.runs) == ([], [])
    assert len(came.already_there) == 4
    assert content(here.settings.workspace) == before


def test_a_name_that_is_taken_gives_a_renamed_copy(zipped: Path, make: Make) -> None:
    here = make("here")
    mine = add_adapter(here, "Pirate", seed=7)
    add_run(here, "polite", "stopped")

    came = here.import_workspace(zipped)

    assert came.renamed == [("pirate", "pirate 2"), ("polite", "polite 2")]
    copy = here.library.get("pirate 2")
    assert here.library.get("pirate") == mine
    assert here.runs.get(copy.run_id).request.train.name == "pirate 2"
    again = here.import_workspace(zipped)
    assert (again.adapters, again.runs) == ([], [])


def test_an_id_that_is_taken_by_something_else_gives_a_copy(
    there: Service, zipped: Path, make: Make
) -> None:
    """The same run trained on here: it stays, and its earlier state comes beside it."""
    here = make("here")
    here.import_workspace(zipped)
    adapter, run = here.library.get("pirate"), here.runs.get(here.library.get("pirate").run_id)
    (here.library.folder(adapter.id) / "README.md").write_text("mine")
    config = here.library.folder(adapter.id) / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    run.events_file.write_text(run.events_file.read_text() + "\n")
    before = content(here.settings.workspace)

    came = here.import_workspace(zipped)

    assert came.renamed == [("pirate", "pirate 2")]
    copy = here.library.get("pirate 2")
    twin = here.runs.get(copy.run_id)
    assert copy.id != adapter.id
    assert twin.id != run.id
    assert twin.request.run_id == twin.id
    assert twin.request.adapter_id == copy.id
    after = content(here.settings.workspace)
    assert {name: after[name] for name in before} == before


def test_a_stopped_run_whose_adapter_id_is_taken_gets_another(zipped: Path, make: Make) -> None:
    """Else the run, once resumed, would write its adapter over one that is here."""
    here = make("here")
    here.import_workspace(zipped)
    polite = next(run for run in here.runs.all() if run.request.train.name == "polite")
    polite.events_file.write_text("")

    here.import_workspace(zipped)

    ids = [run.request.adapter_id for run in here.runs.all()]
    assert len(set(ids)) == len(ids) == 3


def test_settings_travel_where_they_fit(there: Service, make: Make, tmp_path: Path) -> None:
    Recipe(base=rq.LoadModel(source="starter"), active=[("pirate", 0.7), ("gone", 1.0)]).save(
        there.settings.session_file
    )
    wait_there(there, "later", start_from="pirate")
    there.export_workspace(tmp_path / "a.zip")
    here = make("here")
    add_adapter(here, "pirate", seed=7)

    came = here.import_workspace(tmp_path / "a.zip")

    assert came.session
    assert came.queued == ["later"]
    recipe = Recipe.load(here.settings.session_file)
    assert recipe.active == [("pirate 2", 0.7)]
    (item,) = json.loads(here.settings.queue_file.read_text())
    assert item["train"]["start_from"] == "pirate 2"
    again = here.import_workspace(tmp_path / "a.zip")
    assert (again.queued, again.session) == ([], False)
    assert again.left_out == ["The session is left out: this workspace already has one."]


def test_paths_of_the_other_machine_are_reported(
    there: Service, make: Make, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "x"}\n')
    add_run(there, "mine", data=str(data))
    wait_there(there, "later", data=str(data))
    windows = r"C:\data\held.jsonl"
    add_run(there, "other", data=str(data), held_out=windows)
    Recipe(base=rq.LoadModel(source=str(tmp_path / "model"))).save(there.settings.session_file)
    there.export_workspace(tmp_path / "a.zip")
    data.unlink()

    came = make("here").import_workspace(tmp_path / "a.zip")

    assert came.missing_paths == sorted([str(data), windows, str(tmp_path / "model")])
    assert came.left_out == [
        "The session is left out: its base model is not here.",
        "The waiting run later is left out: its data is not here.",
    ]


def test_what_the_page_imports_opens_no_folder_that_it_may_not_use(
    there: Service, make: Make, tmp_path: Path
) -> None:
    """Anyone can write such a zip; a path in it must not become a way around the check."""
    private = tmp_path / "private" / "data.jsonl"
    private.parent.mkdir()
    private.write_text('{"text": "x"}\n')
    run = add_run(there, "spy", "stopped", data=str(private))
    wait_there(there, "later", data=str(private))
    Recipe(base=rq.LoadModel(source=str(private.parent))).save(there.settings.session_file)
    here = make("here")
    there.export_workspace(here.settings.exports_dir / "a.zip", checkpoints=True)

    came = here.import_workspace(here.settings.exports_dir / "a.zip", caller="page")

    assert (came.queued, came.session) == ([], False)
    assert [said.split(":")[0] for said in came.left_out] == [
        "The session is left out",
        "The waiting run later is left out",
    ]
    with pytest.raises(InvalidRequest, match="The page may not use"):
        here.start(rq.Resume(run_id=run.id), caller="page")


def test_the_queue_waits_in_the_name_of_whoever_imports_it(
    there: Service, make: Make, tmp_path: Path
) -> None:
    wait_there(there, "later")
    here = make("here")
    target = here.settings.exports_dir / "a.zip"
    there.export_workspace(target)

    here.import_workspace(target, caller="page")

    (item,) = json.loads(here.settings.queue_file.read_text())
    assert Waiting.model_validate(item).caller == "page"


# --- not at all ---


def everything(service: Service) -> dict[str, bytes]:
    return content(service.settings.workspace)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_move_that_fails_undoes_those_before(
    zipped: Path, make: Make, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    here = make("here")
    add_adapter(here, "pirate", seed=7)
    before, moved, real = everything(here), [], os.rename

    def rename(source: Path, target: Path) -> None:
        if len(moved) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        moved.append(target)
        real(source, target)

    monkeypatch.setattr("backend.workspace.moves.os.rename", rename)

    with pytest.raises(DiskFull):
        here.import_workspace(zipped)

    assert everything(here) == before
    assert len(moved) == at


def test_a_file_that_arrives_otherwise_undoes_everything(
    zipped: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make("here")
    before, real = everything(here), os.rename

    def rename(source: Path, target: Path) -> None:
        real(source, target)
        if "ad_" in str(target):
            with (target / "adapter_model.safetensors").open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\xff")

    monkeypatch.setattr("backend.workspace.moves.os.rename", rename)

    with pytest.raises(VerificationFailed, match="nothing was imported"):
        here.import_workspace(zipped)

    assert everything(here) == before


def test_a_queue_that_cannot_be_written_undoes_everything(
    there: Service, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_there(there, "later")
    there.export_workspace(tmp_path / "a.zip")
    here = make("here")
    before = everything(here)

    def full(*_: object) -> None:
        raise DiskFull("Could not write queue.json.")

    monkeypatch.setattr("backend.runs.training_queue.write_text", full)

    with pytest.raises(DiskFull):
        here.import_workspace(tmp_path / "a.zip")

    assert everything(here) == before


def test_what_a_killed_import_left_is_undone_at_the_next_start(
    zipped: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make("here")
    add_adapter(here, "mine", seed=7)
    before = everything(here)
    monkeypatch.setattr("backend.workspace.moves._undo", lambda journal: None)
    monkeypatch.setattr("backend.workspace.moves.shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr("backend.workspace.moves._compare", lambda move: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # as a power cut, once all was moved
        here.import_workspace(zipped)
    monkeypatch.undo()
    assert len(here.library.all()) == 3
    (journal,) = here.settings.workspace.glob(".import-*/journal.json")

    make("here")
    assert len(here.library.all()) == 3  # its process, this one, is alive
    gone = {**json.loads(journal.read_text()), "process_started": time.time() - 1e6}
    journal.write_text(json.dumps(gone))
    make("here")

    assert everything(here) == before
