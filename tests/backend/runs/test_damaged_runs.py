"""A run of which a file is damaged: named, kept, never overwritten, and what can still be done."""

from pathlib import Path

import pytest

from backend import requests as rq
from backend.errors import Busy, Damaged, NotFound
from backend.library import new_adapter_id
from backend.runs import adjustments
from backend.runs.events import EventReader, EventWriter
from backend.runs.run_store import Run, Runs
from tests.backend.conftest import FACTS
from tests.backend.damaging import WAYS, Way, a_folder, content_of, empty, forbid, not_utf8

BASE = ("starter", "starter", FACTS.fingerprint)


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def damaged(request: pytest.FixtureRequest) -> Way:
    """A way in which a file can be damaged."""
    way: Way = request.param
    return way


def create(runs: Runs, name: str = "pirate", *, steps: int = 6) -> Run:
    train = rq.Train(name=name, adapter=rq.Lora(rank=4))
    run = runs.create(train, base=BASE, adapter_id=new_adapter_id(), colour="#E69F00")
    writer = EventWriter(run.events_file)
    writer.write("started", step=0, total_steps=20)
    writer.write("precision", text="Computing in bf16: as chosen.")
    for step in range(1, steps + 1):
        writer.write("step", step=step, loss=5.0 - step / 2, tokens_per_second=100.0)
    writer.close()
    (run.checkpoints / "checkpoint-5").mkdir()
    run.update(state="stopped", step=steps, total_steps=20, precision="bf16")
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def test_a_run_with_a_damaged_status_is_listed_and_hides_no_other(runs: Runs, damaged: Way) -> None:
    run, good = create(runs), create(runs, "good")
    file = run.folder / "status.json"
    damaged(file)
    before = content_of(file)

    summaries = {summary.name: summary for summary in runs.summaries()}

    assert summaries["good"].state == "stopped"
    found = summaries["pirate"]
    assert (found.state, found.resumable) == ("damaged", True)
    assert found.message.startswith("status.json ")
    assert found.cure == "Its checkpoints can be read: Resume continues from the last one."
    assert (found.step, found.total_steps, found.loss) == (6, 20, 2.0)
    assert (found.rank, found.base_name) == (4, "starter")
    assert runs.sweep("The app ended.") == []
    assert content_of(file) == before
    assert runs.reserved_names() == {"pirate", good.request.train.name}


def test_a_run_with_a_damaged_request_is_listed_and_can_be_deleted(
    runs: Runs, damaged: Way
) -> None:
    run = create(runs, "My Pirate")
    file = run.folder / "request.json"
    damaged(file)
    before = content_of(file)

    (found,) = runs.summaries()

    assert (found.state, found.name, found.resumable) == ("damaged", "my-pirate", False)
    assert found.message.startswith("request.json ")
    assert found.cure == "It cannot be resumed. You can look into its folder or delete it."
    assert (found.step, found.loss) == (6, 2.0)
    assert content_of(file) == before
    with pytest.raises(Damaged, match=r"request\.json"):
        _ = runs.get(run.id).request
    runs.delete(run.id)
    assert runs.summaries() == []


def test_damaged_changes_keep_a_run_from_being_resumed_and_are_kept(
    runs: Runs, damaged: Way
) -> None:
    run = create(runs)
    file = run.folder / adjustments.FILE
    adjustments.add(run.folder, adjustments.Adjustment(step=3, learning_rate=0.1))
    damaged(file)
    before = content_of(file)

    (found,) = runs.summaries()
    with pytest.raises(Damaged):
        adjustments.add(run.folder, adjustments.Adjustment(step=5, learning_rate=0.2))

    assert (found.state, found.resumable) == ("damaged", False)
    assert found.message.startswith("adjustments.json ")
    assert content_of(file) == before


def test_a_finished_run_with_damaged_changes_is_finished_and_cannot_be_extended(
    runs: Runs,
) -> None:
    run = create(runs)
    run.update(state="finished", step=20)
    (run.folder / adjustments.FILE).write_text("[{", encoding="utf-8")

    (found,) = runs.summaries()

    assert found.state == "finished"
    assert found.not_extendable == "adjustments.json is damaged: it is cut off or is not JSON"


@pytest.mark.parametrize("name", ["status.json", "request.json"])
def test_a_file_that_may_not_be_read_is_named(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    create(runs)
    forbid(monkeypatch, name)

    (found,) = runs.summaries()

    assert (found.state, found.message) == ("damaged", f"{name} cannot be read: Permission denied.")
    monkeypatch.undo()
    assert runs.summaries()[0].state == "stopped"


@pytest.mark.parametrize("name", ["status.json", "request.json"])
def test_a_missing_file_is_named(runs: Runs, name: str) -> None:
    run = create(runs)
    (run.folder / name).unlink()

    (found,) = runs.summaries()

    assert (found.state, found.message) == ("damaged", f"{name} cannot be read: it is not there.")


def test_both_files_damaged_still_leave_a_run_that_is_listed(runs: Runs, damaged: Way) -> None:
    run = create(runs)
    for name in ("status.json", "request.json", "events.jsonl"):
        damaged(run.folder / name)

    (found,) = runs.summaries()

    assert found.state == "damaged"
    assert "status.json" in found.message
    assert "request.json" in found.message
    runs.delete(run.id)


def test_other_folders_are_no_runs(runs: Runs) -> None:
    run = create(runs)
    (runs.root / "notes").mkdir()
    (runs.root / ".half.1234.partial").mkdir()
    (runs.root / "file").write_text("mine", encoding="utf-8")

    assert [each.id for each in runs.all()] == [run.id]
    with pytest.raises(NotFound):
        runs.get("notes")


def test_a_damaged_run_that_is_still_trained_is_left_alone(runs: Runs) -> None:
    run = create(runs)
    run.claim()
    empty(run.folder / "status.json")

    (found,) = runs.summaries()

    assert (found.state, found.cure) == ("damaged", "It is still being trained.")
    assert not found.resumable
    with pytest.raises(Busy, match="is being trained"):
        runs.delete(run.id)


def test_claiming_a_run_with_a_damaged_status_keeps_the_file_and_goes_on_from_its_events(
    runs: Runs, damaged: Way
) -> None:
    run = create(runs)
    file = run.folder / "status.json"
    damaged(file)
    before = content_of(file)

    run.claim()

    status = run.status()
    assert (status.state, status.step, status.precision) == ("running", 6, "bf16")
    (aside,) = run.folder.glob("status.json.damaged-*")
    assert content_of(aside) == before


def test_a_run_that_had_finished_is_not_resumed_for_want_of_its_status(runs: Runs) -> None:
    run = create(runs)
    writer = EventWriter(run.events_file)
    writer.write("finished", step=20, text="Finished after 20 steps.")
    writer.close()
    empty(run.folder / "status.json")

    (found,) = runs.summaries()

    assert (found.state, found.resumable) == ("damaged", False)
    assert run.known_status().state == "finished"


def test_a_damaged_note_hides_nothing(runs: Runs, damaged: Way) -> None:
    run = create(runs)
    run.write_note("good")
    damaged(run.note_file)

    assert runs.summaries()[0].state == "stopped"
    before = content_of(run.note_file)
    run.write_note("better")
    assert run.note() == "better"
    kept = [content_of(aside) for aside in run.folder.glob("note.txt.damaged-*")]
    assert kept == ([before] if damaged in (not_utf8, a_folder) else [])


def test_a_damaged_word_to_a_run_is_no_end_of_listening(runs: Runs, damaged: Way) -> None:
    run = create(runs)
    run.tell("stop")
    damaged(run.folder / "control")

    assert isinstance(run.told(), str)


# -- events --------------------------------------------------------------------------------------


def test_lines_that_cannot_be_read_are_counted(runs: Runs) -> None:
    run = create(runs)
    lines = run.events_file.read_bytes().splitlines(keepends=True)
    lines[3:5] = [b'{"seq": 4, "ti\n', b"\xff\xfe\n"]
    run.events_file.write_bytes(b"".join(lines))
    reader = EventReader(run.events_file)

    assert [event.step for event in reader.poll() if event.type == "step"] == [1, 4, 5, 6]
    assert reader.problem == "2 lines of events.jsonl cannot be read and will be ignored."


def test_a_folder_in_place_of_the_events_is_named(runs: Runs) -> None:
    run = create(runs)
    a_folder(run.events_file)
    reader = EventReader(run.events_file)

    assert reader.poll() == []
    assert reader.problem == "events.jsonl cannot be read: Is a directory."
    assert runs.summaries()[0].state == "stopped"
