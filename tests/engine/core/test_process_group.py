"""A run shared by two processes over gloo: the same weights, one story, and ends of every kind."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from backend import Service
from backend import requests as rq
from backend.errors import Busy, Stopped, WorkerDied
from backend.results import RunResult
from backend.runs import launch_commands
from backend.runs.run_store import Run
from backend.runs.run_summary import describe
from backend.service.worker_process import process_environment
from backend.settings import PROJECT
from tests.engine.shared_run import LEARNS, LONG
from tests.engine.tiny import scores, start_service, write_base

FOR_LONG: dict[str, Any] = {**LEARNS, "max_steps": 2000, "epochs": 99}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("ranks")
    with start_service(folder / "workspace", write_base(folder / "base", layers=2)) as service:
        yield service


@pytest.fixture(scope="module")
def whole(service: Service) -> RunResult:
    """A run of two processes that nobody interrupts."""
    return finished(service, rq.Train(name="whole", **LEARNS))


def finished(service: Service, request: rq.Train | rq.Resume) -> RunResult:
    result: RunResult = service.start(request).result(timeout=LONG)
    return result


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    return load_file(Path(result.adapter_path) / "adapter_model.safetensors")


def largest_difference(left: RunResult, right: RunResult) -> float:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def wait_for(condition: Callable[[], bool], what: str, timeout: float = LONG) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"waited {timeout} s for {what}"
        time.sleep(0.05)


def wait_for_step(run: Run, step: int) -> None:
    def reached() -> bool:
        status = run.status()
        assert status.state in ("queued", "running"), status.message
        return status.state == "running" and status.step >= step

    wait_for(reached, f"step {step}")


def launch_by_hand(service: Service, **fields: Any) -> tuple[Run, "subprocess.Popen[str]"]:
    launch = service.prepare_launch(rq.Train(**{**LEARNS, **fields}))
    run = service.runs.get(launch.run_id)
    return run, torchrun(run, 2)


def torchrun(run: Run, processes: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        launch_commands.arguments(run.folder, processes),
        cwd=PROJECT,
        env=process_environment(launch_commands.environment(processes)),
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(path: Path, count: int) -> str:
    """Write examples of which each fills a pack of its own."""
    lines = [
        {"text": f"Number {n} of the ships sails to the island at noon."} for n in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


# -- the same numbers ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_end_with_the_weights_of_one(service: Service, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        **LEARNS,
        "data": rows(tmp_path / "rows.jsonl", 23),  # 21 to learn from: the last step has one pack
        "tokens_per_step": 24,
        "adapter": rq.Lora(rank=4),
        "accumulation": 4,
        "max_steps": None,
        "epochs": 1,
    }

    one = finished(service, rq.Train(**{**fields, "name": "one", "processes": 1}))
    two = finished(service, rq.Train(**{**fields, "name": "two"}))

    assert one.steps == two.steps == 6
    assert largest_difference(one, two) <= 1e-5
    assert two.final_loss == pytest.approx(one.final_loss, abs=1e-5)
    assert two.evaluation is not None
    assert one.evaluation is not None
    assert two.evaluation.loss == pytest.approx(one.evaluation.loss, abs=1e-5)
    assert scores(service, [("two", 1.0)]) == pytest.approx(
        scores(service, [("one", 1.0)]), abs=1e-3
    )
    assert scores(service, [("two", 1.0)]) != scores(service, [])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_tell_one_story(service: Service, whole: RunResult) -> None:
    events = service.events(whole.run_id)
    run = service.runs.get(whole.run_id)

    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.step for event in events if event.type == "step"] == list(range(1, 61))
    notices = [event.text for event in events if event.type == "notice"]
    assert notices == ["2 processes share the packs of each step."]  # fails unless two took part
    assert (run.folder / "output-2.log").is_file()
    assert run.status().state == "finished"
    assert whole.adapter in [info.name for info in service.snapshot().adapters]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_another_number_of_processes_is_refused(service: Service) -> None:
    launch = service.prepare_launch(rq.Train(**{**LEARNS, "name": "alone"}))
    command = [sys.executable, "-m", "backend.engine", "run", launch.folder]

    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "Error: This run needs 2 processes, but 1 was started." in done.stderr
    assert "torchrun --standalone --nproc_per_node 2 -m backend.engine run" in done.stderr
    status = service.runs.get(launch.run_id).status()
    assert (status.state, status.step) == ("failed", 0)


# -- stop and go on ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_launcher_that_is_stopped_saves_and_the_run_resumes_with_the_same_bits(
    service: Service, whole: RunResult
) -> None:
    run, launcher = launch_by_hand(service, name="launched by hand")
    wait_for_step(run, 5)
    shown = [job.run_id for job in service.snapshot().side_jobs]
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=LONG)

    assert shown == [run.id]
    stopped = run.status()
    assert stopped.state == "stopped", stopped.message
    assert 5 <= stopped.step < 60
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{stopped.step}"
    wait_for(lambda: not service.snapshot().side_jobs, "the page to notice the end")
    resumed = finished(service, rq.Resume(run_id=run.id))
    assert (resumed.state, resumed.steps) == ("finished", 60)
    assert largest_difference(whole, resumed) == 0.0
    assert service.curve(run.id).step == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stop_from_the_page_ends_it_well(service: Service) -> None:
    job = service.start(rq.Train(**{**FOR_LONG, "name": "stopped here"}))
    run = service.runs.get(str(job.run_id))
    wait_for_step(run, 3)
    with pytest.raises(Busy, match="Training stopped here is still going on"):
        service.start(rq.Train(**{**LEARNS, "name": "second"}))
    assert service.snapshot().phase == "training"
    assert scores(service, [])  # the session's model is free meanwhile
    assert run.latest_checkpoint() is None
    service.save_now()
    wait_for(lambda: run.latest_checkpoint() is not None, "the run to be saved as it goes on")
    first = run.latest_checkpoint()
    service.save_now()
    wait_for(lambda: run.latest_checkpoint() != first, "the run to be saved once more")

    service.stop_side(job.id)
    result = job.result(timeout=LONG)

    assert result.state == "stopped"
    assert run.latest_checkpoint() is not None
    assert "stopped here" in [info.name for info in service.snapshot().adapters]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ending_at_once_is_told_as_that(service: Service) -> None:
    job = service.start(rq.Train(**{**FOR_LONG, "name": "ended"}))
    run = service.runs.get(str(job.run_id))
    wait_for_step(run, 1)

    service.stop_side(job.id)
    service.stop_side(job.id)

    with pytest.raises(Stopped):
        job.result(timeout=LONG)
    assert run.status().state == "stopped"


# -- a process dies ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_process_ends_the_run_with_its_reason_and_a_checkpoint(
    service: Service, whole: RunResult
) -> None:
    job = service.start(rq.Train(**{**LEARNS, "name": "killed"}))
    run = service.runs.get(str(job.run_id))
    wait_for_step(run, 4)
    other = next(p for p in processes_of(run) if p.pid != run.status().pid)
    other.kill()

    with pytest.raises(WorkerDied, match="Process 2 of 2 has ended: it was killed") as caught:
        job.result(timeout=LONG)

    status = run.status()
    assert (status.state, status.error) == ("failed", "WorkerDied")
    assert status.step >= 4
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{status.step}"
    assert caught.value.cure == "Resume continues from the last checkpoint."
    assert largest_difference(whole, finished(service, rq.Resume(run_id=run.id))) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_leader_is_noticed(service: Service) -> None:
    job = service.start(rq.Train(**{**FOR_LONG, "name": "headless", "save_every": 3}))
    run = service.runs.get(str(job.run_id))
    wait_for(lambda: run.latest_checkpoint() is not None, "a checkpoint")
    psutil.Process(run.status().pid).kill()

    with pytest.raises(WorkerDied, match="leading process ended") as caught:
        job.result(timeout=LONG)

    status = run.status()
    assert status.state == "interrupted"
    assert caught.value.cure == status.cure == "Resume continues from the last checkpoint."
    assert describe(run).resumable
    wait_for(lambda: not processes_of(run), "the other process to end")


def processes_of(run: Run) -> list[psutil.Process]:
    """Return the processes that train a run, without their launcher."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(run.folder) in words and "torch.distributed.run" not in words:
            found.append(process)
    return found
