"""Who trains a run: one at a time, in whichever app, and nobody any more once a process is gone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from backend.errors import Busy, DiskFull, WorkerDied
from backend.library import new_adapter_id
from backend.results import AdapterInfo
from backend.runs import run_lock
from backend.runs.run_lock import RunLock
from backend.runs.run_store import Run, Runs
from backend.settings import PROJECT
from tests.backend.conftest import FACTS, ScriptedRuntime

BASE = ("starter", "starter", FACTS.fingerprint)
HOLD = """
import sys
from pathlib import Path
from backend.runs.run_store import Run
run = Run(Path(sys.argv[1]))
run.claim()
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def create(runs: Runs, name: str = "pirate") -> Run:
    train = rq.Train(name=name, adapter=rq.Lora(rank=4))
    run = runs.create(train, base=BASE, adapter_id=new_adapter_id(), colour="#E69F00")
    (run.checkpoints / "checkpoint-5").mkdir()
    return run


Elsewhere = Callable[[Run], subprocess.Popen[str]]


@pytest.fixture
def train_elsewhere() -> Iterator[Elsewhere]:
    """Let another process claim a run and hold it until it is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(run: Run) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(run.folder)],
            cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_run_is_trained_by_one_at_a_time(runs: Runs) -> None:
    run = create(runs)
    first, second = Run(run.folder), Run(run.folder)

    first.claim()
    with pytest.raises(Busy) as caught:
        second.claim()

    assert str(caught.value) == (
        f"pirate is being trained here by process {os.getpid()}. "
        "Stop it there first, or wait until it has ended."
    )
    assert first.status().state == "running"
    first.release()
    second.claim()


def test_of_many_that_claim_a_run_at_once_one_gets_it(runs: Runs) -> None:
    run = create(runs)
    each = [Run(run.folder) for _ in range(12)]
    got, together = list[Run](), threading.Barrier(len(each))

    def claim(mine: Run) -> None:
        together.wait()
        try:
            mine.claim()
        except Busy:
            return
        got.append(mine)

    threads = [threading.Thread(target=claim, args=(mine,)) for mine in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(got) == 1


def test_the_end_of_a_process_lets_its_run_go(runs: Runs, train_elsewhere: Elsewhere) -> None:
    run = create(runs)
    process = train_elsewhere(run)
    assert run.is_alive()
    assert runs.summaries()[0].state == "running"

    process.send_signal(signal.SIGKILL)
    process.wait()

    assert not run.is_alive()
    (summary,) = runs.summaries()
    assert (summary.state, summary.resumable) == ("interrupted", True)
    assert summary.cure == "Resume continues from the last checkpoint."
    run.claim()


def test_a_worker_that_goes_on_to_other_work_does_not_keep_a_run_going(runs: Runs) -> None:
    """As after a full disk: the process lives, but the run's end could not be written down."""
    run = create(runs)
    run.claim()
    run.release()

    assert run.status().state == "running"
    assert not run.is_alive()
    assert runs.summaries()[0].state == "interrupted"
    assert [each.id for each in runs.sweep("The app ended.")] == [run.id]


def test_a_lock_that_nobody_refers_to_any_more_is_free(runs: Runs) -> None:
    run = create(runs)
    Run(run.folder).claim()

    assert not run.is_alive()


def test_a_run_that_waits_for_a_living_app_is_left_alone(runs: Runs) -> None:
    create(runs)

    assert runs.sweep("The app ended.") == []
    assert [run.status().state for run in runs.sweep("It was closed.", own=True)] == ["interrupted"]


def test_a_run_of_another_machine_counts_as_trained_while_it_gives_signs_of_life(
    runs: Runs,
) -> None:
    run = create(runs)
    run.update(state="running", host="elsewhere", locked=True, pid=1, process_started=1.0)

    assert run.is_alive()
    with pytest.raises(Busy, match="is being trained on elsewhere by process 1"):
        run.require_untrained()

    with pytest.raises(Busy, match="on elsewhere"):
        run.claim()
    runs.fail(run, DiskFull("Not ours to say."))
    assert (run.status().state, run.status().host) == ("running", "elsewhere")

    old = time.time() - 61
    run.update(heartbeat=old)
    os.utime(run.lock.file, (old, old))
    assert not run.is_alive()


def test_a_run_that_is_trained_gives_signs_of_life(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.runs.run_lock.SIGN_EVERY_S", 0.01)
    run = create(runs)
    run.claim()
    os.utime(run.lock.file, (1.0, 1.0))

    for _ in range(500):
        if run.lock.last_sign() > 1.0:
            break
        time.sleep(0.01)

    assert time.time() - run.lock.last_sign() < 10


def test_without_locks_the_number_of_the_process_decides(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.runs.run_lock.fcntl", None)
    run = create(runs)
    run.claim()

    assert not run.status().locked
    assert Run(run.folder).is_alive()
    run.update(process_started=1.0)
    run.release()
    assert not Run(run.folder).is_alive()


def test_a_run_that_is_deleted_while_it_is_claimed_is_not_trained(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(runs)
    lock_file, original = run.lock.file, run_lock._try_often

    def deleted_meanwhile(descriptor: int) -> bool | None:
        lock_file.unlink()
        return original(descriptor)

    monkeypatch.setattr(run_lock, "_try_often", deleted_meanwhile)

    assert not RunLock(run.folder).acquire()


# -- through the service -------------------------------------------------------------------------


@pytest.mark.parametrize("extra_epochs", [0.0, 1.0])
def test_resuming_a_run_that_another_app_trains_is_refused(
    service: Service, engine: ScriptedRuntime, train_elsewhere: Elsewhere, extra_epochs: float
) -> None:
    run = create(service.runs)
    run.update(state="finished" if extra_epochs else "stopped", step=5, total_steps=5)
    process = train_elsewhere(run)

    with pytest.raises(Busy) as caught:
        service.start(rq.Resume(run_id=run.id, extra_epochs=extra_epochs))

    assert str(caught.value) == (
        f"pirate is being trained here by process {process.pid}. "
        "Stop it there first, or wait until it has ended."
    )
    assert "resume" not in engine.operations


def test_deleting_a_run_that_another_app_trains_is_refused(
    service: Service, train_elsewhere: Elsewhere
) -> None:
    run = create(service.runs)
    train_elsewhere(run)

    with pytest.raises(Busy, match="pirate is being trained here by process"):
        service.delete_run(run.id)

    assert run.folder.is_dir()


@pytest.mark.parametrize(
    "request_",
    [rq.DeleteAdapter(name="pirate"), rq.RenameAdapter(name="pirate", new_name="other")],
    ids=["delete", "rename"],
)
def test_the_adapter_of_a_run_that_another_app_trains_stays_as_it_is(
    service: Service, train_elsewhere: Elsewhere, request_: rq.Request
) -> None:
    run = create(service.runs)
    info = AdapterInfo(
        id=run.request.adapter_id, name="pirate", colour="#E69F00", method="LoRA", rank=4,
        parameters=1, base_name="starter", base_fingerprint=FACTS.fingerprint, created=0.0,
        run_id=run.id,
    )  # fmt: skip
    with service.library.receive(info):
        pass
    train_elsewhere(run)

    with pytest.raises(Busy, match="pirate is being trained"):
        service.start(request_)


def test_a_resume_that_comes_too_late_leaves_the_other_apps_run_alone(
    service: Service, engine: ScriptedRuntime, train_elsewhere: Elsewhere
) -> None:
    """Both apps asked at the same moment; this one's engine finds the run taken."""
    run = create(service.runs)
    run.update(state="stopped")
    job = service.start(rq.Resume(run_id=run.id))
    process = train_elsewhere(run)

    engine.tell("error", error=Busy("pirate is being trained here.").to_dict())

    with pytest.raises(Busy):
        job.result(timeout=0)
    status = run.status()
    assert (status.state, status.pid, status.message) == ("running", process.pid, "")


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)


def test_a_run_that_a_full_disk_ended_is_shown_as_ended_and_can_be_resumed_and_deleted(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.start(rq.Train(name="pirate"))
    assert job.run_id is not None
    run = service.runs.get(job.run_id)
    worker = Run(run.folder)
    worker.claim()
    (run.checkpoints / "checkpoint-5").mkdir()

    with monkeypatch.context() as patched:
        full(patched)
        worker.release()
        error = DiskFull("Could not write status.json: No space left.", cure="Free some.")
        engine.tell("error", error=error.to_dict())
        with pytest.raises(DiskFull):
            job.result(timeout=0)

        (summary,) = service.snapshot().runs
        assert run.status().state == "running"  # as written
        assert (summary.state, summary.error) == ("failed", "DiskFull")
        assert (summary.message, summary.cure) == (error.what, error.cure)
        assert summary.resumable

    monkeypatch.setattr("backend.runs.run_store.TRY_AGAIN_S", 0.0)
    service.snapshot()
    assert (run.status().state, run.status().message) == ("failed", error.what)
    engine.session(FACTS, [])
    service.start(rq.Resume(run_id=run.id))
    engine.tell("error", error=DiskFull("Still full.").to_dict())
    service.delete_run(run.id)
    assert not run.folder.exists()


def test_a_run_that_a_full_disk_ended_can_be_deleted_while_the_disk_is_full(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(service.runs)
    run.claim()
    run.release()
    run.lock.file.unlink()  # as a run of an older version
    run.update(locked=False, process_started=1.0)

    full(monkeypatch)
    service.delete_run(run.id)

    assert service.snapshot().runs == []


def test_a_run_that_never_began_on_a_full_disk_is_shown_as_failed(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.start(rq.Train(name="pirate"))

    full(monkeypatch)
    engine.tell("error", error=DiskFull("The disk is full.").to_dict())

    with pytest.raises(DiskFull):
        job.result(timeout=0)
    (summary,) = service.snapshot().runs
    assert (summary.state, summary.message) == ("failed", "The disk is full.")
    service.delete_run(summary.id)
    assert service.snapshot().runs == []


def test_a_death_that_cannot_be_written_down_is_told_all_the_same(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.start(rq.Train(name="pirate"))

    full(monkeypatch)
    engine.on_exit("it was killed")

    with pytest.raises(WorkerDied):
        job.result(timeout=0)
    (summary,) = service.snapshot().runs
    assert summary.state == "interrupted"
    assert summary.message == "The model process ended: it was killed."


def test_a_run_on_this_machine_says_so(runs: Runs) -> None:
    run = create(runs)
    run.claim()

    assert run.status().host == socket.gethostname()
    assert run.status().locked
