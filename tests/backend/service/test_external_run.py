"""Runs with processes of their own, as the service sees them: by their folders alone."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from backend import Service
from backend import requests as rq
from backend import results as rs
from backend.errors import Busy, InvalidRequest, NotFound, Stopped, Unsupported, WorkerDied
from backend.files.atomic_files import write_text
from backend.runs.run_store import Run
from tests.backend.conftest import ScriptedRuntime

SHARED: dict[str, Any] = {"name": "shared", "accumulation": 2, "processes": 2}


class Leader:
    """A process that leads a run and does nothing; the test writes what it would write."""

    def __init__(self, run: Run) -> None:
        self.run = run
        code = "import time; time.sleep(600)"
        self.process = subprocess.Popen([sys.executable, "-S", "-c", code])
        run.claim(launched=True)
        run.release()  # it is the process that has the run, by its number, not this one
        started = psutil.Process(self.process.pid).create_time()
        run.update(
            locked=False, pid=self.process.pid, process_started=started, step=4, total_steps=10
        )

    def finish(self, result: rs.RunResult) -> None:
        self.run.update(state=result.state, message="Done.")
        write_text(self.run.folder / "result.json", result.model_dump_json())
        self.end()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def waiting(service: Service) -> Run:
    return service.runs.get(service.prepare_launch(rq.Train(**SHARED)).run_id)


@pytest.fixture
def leader(service: Service) -> Iterator[Leader]:
    leader = Leader(waiting(service))
    yield leader
    leader.end()


def result_of(run: Run, state: rs.RunState) -> rs.RunResult:
    return rs.RunResult(
        run_id=run.id,
        adapter="shared",
        state=state,
        steps=4,
        total_steps=10,
        first_loss=2.0,
        final_loss=1.0,
        tokens_per_second=10.0,
        seconds=1.0,
        peak_memory_bytes=1,
        precision="fp32",
        precision_reason="as chosen",
        evaluation_before=None,
        evaluation=None,
        adapter_path="",
        max_difference=0.0,
    )


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("It did not happen.")


def only_job(service: Service) -> rs.JobInfo:
    (job,) = service.snapshot().side_jobs
    return job


def test_a_run_that_somebody_launched_is_shown_and_hears_a_stop(
    service: Service, leader: Leader
) -> None:
    job = only_job(service)
    until(lambda: only_job(service).fraction == 0.4)

    assert (job.title, job.run_id) == ("Training shared", leader.run.id)
    assert service.snapshot().phase == "training"
    assert service.snapshot().job is None  # the session's model is free
    service.save_now()
    assert leader.run.told().startswith("save ")
    service.stop_side(job.id)
    assert leader.run.told().startswith("stop ")
    assert only_job(service).stopping
    service.save_now()
    leader.run.tell("save")  # a stop saves anyway, and is not to be forgotten
    assert leader.run.told().startswith("stop ")

    leader.finish(result_of(leader.run, "stopped"))

    until(lambda: not service.snapshot().side_jobs)
    assert service.snapshot().notice is None
    assert leader.run.status().state == "stopped"


def test_it_is_followed_once(service: Service, leader: Leader) -> None:
    assert only_job(service).id == only_job(service).id


def test_a_leader_that_is_gone_is_noticed(service: Service, leader: Leader) -> None:
    only_job(service)
    (job,) = service.engine.jobs()

    leader.end()

    with pytest.raises(WorkerDied, match="shared was interrupted: its leading process ended"):
        job.result(timeout=30)
    status = leader.run.status()
    assert (status.state, status.step) == ("interrupted", 4)
    assert status.cure == "There was no checkpoint yet: start it again."
    notice = service.snapshot().notice
    assert notice is not None
    assert "its leading process ended" in notice.text


def test_a_run_that_failed_tells_its_own_reason(service: Service, leader: Leader) -> None:
    only_job(service)
    (job,) = service.engine.jobs()

    why = "Process 2 of 2 is gone: it was killed."
    leader.run.update(state="failed", message=why, cure="Resume it.", error="WorkerDied")
    leader.end()

    with pytest.raises(WorkerDied, match=why) as caught:
        job.result(timeout=30)
    assert caught.value.cure == "Resume it."


def test_the_second_stop_ends_it_at_once(service: Service, leader: Leader) -> None:
    info = only_job(service)
    (job,) = service.engine.jobs()

    service.stop_side(info.id)
    service.stop_side(info.id)

    leader.process.wait(30)
    with pytest.raises(Stopped):
        job.result(timeout=30)
    assert leader.run.status().state == "stopped"


def test_closing_the_app_leaves_a_run_that_it_did_not_start(
    service: Service, leader: Leader
) -> None:
    only_job(service)

    service.close()

    assert leader.process.poll() is None
    assert leader.run.status().state == "running"
    assert leader.run.told() == ""


def test_a_run_that_waits_to_be_launched_is_left_alone(
    service: Service, engine: ScriptedRuntime, scripted: Callable[[], Service]
) -> None:
    run = waiting(service)
    before = engine.operations

    service.close()
    again = scripted()

    (summary,) = again.snapshot().runs
    assert (summary.id, summary.state, summary.launched) == (run.id, "queued", True)
    assert again.snapshot().side_jobs == ()
    assert again.launch_of(run.id).command.endswith(f"run {run.folder}")
    assert engine.operations == before
    again.discard(run.id)
    assert again.snapshot().runs == []


def test_a_run_that_has_begun_is_not_discarded(service: Service, leader: Leader) -> None:
    with pytest.raises(Busy, match="no longer waiting"):
        service.discard(leader.run.id)


def test_a_run_of_another_machine_lives_while_it_writes(service: Service) -> None:
    run = waiting(service)
    run.claim(launched=True)
    run.release()
    run.update(host="elsewhere", pid=0)
    assert run.is_alive()

    long_ago = time.time() - 3600
    os.utime(run.lock.file, (long_ago, long_ago))
    text = run.status().model_copy(update={"heartbeat": long_ago}).model_dump_json()
    write_text(run.folder / "status.json", text)

    assert not run.is_alive()


def test_only_one_such_run_goes_on_at_a_time(service: Service, leader: Leader) -> None:
    only_job(service)

    with pytest.raises(Busy, match="Training shared is still going on"):
        service.start(rq.Train(**{**SHARED, "name": "second"}))
    assert [run.name for run in service.snapshot().runs] == ["shared"]


def test_more_processes_than_this_machine_has_room_for_are_refused(service: Service) -> None:
    with pytest.raises(
        Unsupported, match="2 processes were requested, but this machine has 1 core"
    ):
        service.start(rq.Train(**SHARED))
    assert service.snapshot().runs == []


def test_processes_that_machines_cannot_share_are_refused(service: Service) -> None:
    with pytest.raises(InvalidRequest, match="cannot be divided evenly between 3 machines"):
        service.prepare_launch(rq.Train(**SHARED), machines=3)
    with pytest.raises(NotFound):
        service.launch_of("20250101-000000-none-0000")
