"""Run folders tell the truth about runs, also of processes that are long gone."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from backend import requests as rq
from backend.errors import DiskFull, InvalidRequest, NotFound
from backend.runs.events import EventReader, EventWriter
from backend.runs.run_store import Run, Runs
from backend.runs.run_summary import describe

BASE = ("starter", "starter", "abc123")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def create(runs: Runs, name: str = "pirate") -> Run:
    train = rq.Train(name=name, adapter=rq.Lora(rank=4))
    return runs.create(train, base=BASE, adapter_id="ad_123456", colour="#E69F00")


def test_a_run_folder_holds_enough_to_do_it_again(runs: Runs) -> None:
    run = create(runs, "My Pirate-2")

    request = Run(run.folder).request

    assert request.train == rq.Train(name="My Pirate-2", adapter=rq.Lora(rank=4))
    assert (request.base_source, request.base_name, request.base_fingerprint) == BASE
    assert request.adapter_id == "ad_123456"
    assert {"torch", "transformers", "peft"} <= request.versions.keys()
    assert all(version[0].isdigit() for version in request.versions.values())
    assert "my-pirate-2" in run.id


def test_runs_of_the_same_second_and_name_differ(runs: Runs) -> None:
    assert len({create(runs).id for _ in range(20)}) == 20


def test_a_new_run_is_queued_and_has_nothing_to_resume(runs: Runs) -> None:
    summary = describe(create(runs))

    assert (summary.state, summary.step, summary.resumable) == ("queued", 0, False)
    assert (summary.name, summary.rank, summary.method) == ("pirate", 4, "LoRA")


def test_runs_are_listed_newest_first(runs: Runs) -> None:
    made = [create(runs, name) for name in ("a", "b")]
    for number, run in enumerate(made):
        run.folder.rename(runs.root / f"2025010{number}-000000-x-0000")

    assert [summary.name for summary in runs.summaries()] == ["b", "a"]


def test_a_status_is_replaced_whole_while_others_read_it(runs: Runs) -> None:
    run, seen, ended = create(runs), list[int](), threading.Event()

    def read() -> None:
        while not ended.is_set():
            seen.append(Run(run.folder).status().step)

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(1, 200):
        run.update(step=step, message="x" * 5000)
    ended.set()
    reader.join()

    assert seen == sorted(seen)
    assert run.status().step == 199


def test_a_status_that_cannot_be_written_stays_as_it_was(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(runs)
    run.update(step=3)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        run.update(step=4)

    assert run.status().step == 3


def test_a_status_refuses_a_state_that_does_not_exist(runs: Runs) -> None:
    run = create(runs)

    with pytest.raises(ValueError, match="state"):
        run.update(state="flying")

    assert run.status().state == "queued"


def test_a_run_of_a_living_process_is_left_alone(runs: Runs) -> None:
    run = create(runs)
    run.claim()

    assert runs.sweep("The app ended.") == []
    assert run.status().state == "running"


def test_a_run_of_a_process_that_is_gone_is_interrupted_with_its_cure(runs: Runs) -> None:
    run = create(runs)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(gone.pid).create_time()
    gone.wait()
    run.update(state="running", pid=gone.pid, process_started=started)
    (run.checkpoints / "checkpoint-9").mkdir()
    (run.checkpoints / "checkpoint-10").mkdir()
    (run.checkpoints / ".partial").mkdir()

    swept = runs.sweep("The app ended while this run was training.")

    summary = runs.summaries()[0]
    assert [each.id for each in swept] == [run.id]
    assert summary.state == "interrupted"
    assert summary.message == "The app ended while this run was training."
    assert summary.cure == "Resume continues from the last checkpoint."
    assert summary.resumable
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest.name == "checkpoint-10"
    events = EventReader(run.events_file).poll()
    assert [(event.type, event.text) for event in events] == [
        ("interrupted", "The app ended while this run was training.")
    ]


def test_the_status_of_an_interrupted_run_ends_where_its_curve_ends(runs: Runs) -> None:
    run = create(runs)
    run.update(state="running", pid=0, step=3, loss=2.0)
    writer = EventWriter(run.events_file)
    for step in range(1, 6):
        writer.write("step", step=step, loss=5.0 - step / 2, tokens_per_second=100.0 + step)
    writer.close()

    runs.sweep("The app ended.")

    status = run.status()
    assert (status.step, status.loss, status.tokens_per_second) == (5, 2.5, 105.0)


def test_an_interruption_right_after_a_resume_keeps_the_checkpoints_step(runs: Runs) -> None:
    run = create(runs)
    writer = EventWriter(run.events_file)
    for step in range(1, 6):
        writer.write("step", step=step, loss=1.0)
    writer.write("resumed", step=4)
    writer.close()
    run.update(state="running", pid=0, step=4, loss=1.5)

    runs.sweep("The app ended.")

    assert (run.status().step, run.status().loss) == (4, 1.5)


def test_without_a_checkpoint_the_cure_is_to_start_again(runs: Runs) -> None:
    run = create(runs)
    run.update(state="running", pid=0)

    runs.sweep("The app ended.")

    assert run.status().cure == "There was no checkpoint yet: start it again."
    assert not describe(run).resumable


def test_another_process_with_the_same_number_is_not_the_run(runs: Runs) -> None:
    run = create(runs)
    run.claim()
    run.release()
    run.update(locked=False, process_started=psutil.Process().create_time() - 3600)

    swept = runs.sweep("The app ended.")

    assert [each.id for each in swept] == [run.id]
    assert run.status().state == "interrupted"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no zombies")
@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_run_of_a_zombie_is_interrupted(runs: Runs, state: str) -> None:
    run = create(runs)
    ended = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(ended.pid)
    run.update(state=state, pid=process.pid, process_started=process.create_time())
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays

    swept = runs.sweep("The app ended.")

    ended.communicate()
    assert [each.id for each in swept] == [run.id]


@pytest.mark.parametrize("state", ["finished", "stopped", "failed", "interrupted"])
def test_a_run_that_ended_is_not_swept(runs: Runs, state: str) -> None:
    run = create(runs)
    run.update(state=state, pid=0)

    assert runs.sweep("The app ended.") == []
    assert run.status().state == state


@pytest.mark.parametrize(
    "run_id", ["..", "../secret", "a/b", "/etc", "", "a" * 101, "run\n", "run\x00", "ä"]
)
def test_a_run_id_cannot_leave_the_folder(runs: Runs, run_id: str) -> None:
    (runs.root.parent / "secret").mkdir(parents=True)
    (runs.root.parent / "secret" / "request.json").write_text("{}", encoding="utf-8")

    with pytest.raises(InvalidRequest) as caught:
        runs.get(run_id)

    assert str(caught.value) == f"{run_id!r} is not the id of a run. Copy it from Runs."


def test_an_unknown_run_is_named(runs: Runs) -> None:
    with pytest.raises(NotFound) as caught:
        runs.get("nothing-here")

    assert str(caught.value) == "There is no run 'nothing-here'. See the list under Runs."


def test_a_run_whose_status_did_not_change_is_not_read_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(runs)
    before = runs.summaries()

    def refuse(self: Run) -> None:
        raise AssertionError("The run was read again.")

    monkeypatch.setattr("backend.runs.run_store.describe", refuse)
    assert runs.summaries() == before
    monkeypatch.undo()
    run.update(step=5)
    assert runs.summaries()[0].step == 5


def test_a_deleted_run_is_gone(runs: Runs) -> None:
    run = create(runs)
    run.update(state="stopped")

    runs.delete(run.id)

    assert runs.summaries() == []
    assert not run.folder.exists()


def test_run_folders_are_plain_json(runs: Runs) -> None:
    run = create(runs)

    assert json.loads((run.folder / "request.json").read_text())["train"]["name"] == "pirate"
    assert json.loads((run.folder / "status.json").read_text())["state"] == "queued"
