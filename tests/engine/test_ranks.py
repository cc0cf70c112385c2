"""A run shared by two processes over gloo: the same weights, one story, and ends of every kind."""

import json
import os
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

from backend import Service, Settings, launching
from backend import requests as rq
from backend.engine import launched
from backend.engine.packing import Packs
from backend.engine.ranks import FollowingRun, Ranks
from backend.engine.run_log import RunLog
from backend.engine.tokens import Tokens
from backend.errors import (
    Busy,
    InvalidRequest,
    NotFound,
    Stopped,
    Unsupported,
    WorkbenchError,
    WorkerDied,
)
from backend.results import PreflightReport, RunResult
from backend.runs import Run
from backend.runtime import ENVIRONMENT
from backend.settings import PROJECT
from tests.engine.tiny import scores, start_service, write_base

LONG = 240.0
LEARNS: dict[str, Any] = {
    "data": "starter:pirate",
    "tokens_per_step": 128,
    "precision": "fp32",
    "adapter": rq.Lora(rank=4, dropout=0.1),
    "accumulation": 2,
    "processes": 2,
    "max_steps": 60,
    "save_every": 1000,
}
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
        launching.arguments(run.folder, processes),
        cwd=PROJECT,
        env={**ENVIRONMENT, **launching.environment(processes), **os.environ},
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
    assert "Error: This run asks for 2 processes, and 1 was started." in done.stderr
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

    with pytest.raises(WorkerDied, match="Process 2 of 2 is gone: it was killed") as caught:
        job.result(timeout=LONG)

    status = run.status()
    assert (status.state, status.error) == ("failed", "WorkerDied")
    assert status.step >= 4
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{status.step}"
    assert caught.value.cure == "Resume goes on from the last checkpoint."
    assert largest_difference(whole, finished(service, rq.Resume(run_id=run.id))) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_leader_is_noticed(service: Service) -> None:
    job = service.start(rq.Train(**{**FOR_LONG, "name": "headless", "save_every": 3}))
    run = service.runs.get(str(job.run_id))
    wait_for(lambda: run.latest_checkpoint() is not None, "a checkpoint")
    psutil.Process(run.status().pid).kill()

    with pytest.raises(WorkerDied, match="leading process is gone") as caught:
        job.result(timeout=LONG)

    status = run.status()
    assert status.state == "interrupted"
    assert caught.value.cure == status.cure == "Resume goes on from the last checkpoint."
    assert run.summary().resumable
    wait_for(lambda: not processes_of(run), "the other process to end")


def processes_of(run: Run) -> list[psutil.Process]:
    """Return the processes that train a run, without their launcher."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(run.folder) in words and "torch.distributed.run" not in words:
            found.append(process)
    return found


# -- without processes ---------------------------------------------------------------------------


def test_packs_that_nobody_needs_have_nothing_to_learn() -> None:
    documents = [Tokens(torch.arange(4).numpy(), torch.ones(4, dtype=torch.bool).numpy())] * 3
    packs = Packs(documents, [[0], [1], [2]], shared_by=2)

    assert len(packs) == 4
    assert len(packs[2]["labels"]) == 3
    assert len(packs[3]["labels"]) == 0
    assert packs[3]["input_ids"].shape == (1, 4)
    assert packs.tokens(3) == 0


def test_a_step_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        rq.Train(name="uneven", accumulation=3, processes=2)

    assert str(caught.value) == (
        "Each step has 3 packs, which 2 processes cannot share evenly. "
        "Set Accumulation to a multiple of 2, such as 4."
    )


def test_more_processes_than_places_are_refused(service: Service) -> None:
    base = service.snapshot().base
    assert base is not None
    many = base.places + 1
    train = rq.Train(**{**LEARNS, "name": "many", "processes": many, "accumulation": many})

    with pytest.raises(Unsupported) as caught:
        service.start(train)

    assert str(caught.value).startswith(f"{many} processes were asked for, and this machine has ")
    assert "many" not in [run.name for run in service.snapshot().runs]


def test_the_check_before_a_run_counts_every_process(service: Service) -> None:
    base = service.snapshot().base
    assert base is not None

    def check(processes: int) -> PreflightReport:
        train = rq.Train(
            **{**LEARNS, "name": "ahead", "processes": processes, "accumulation": processes}
        )
        job = service.start(rq.Preflight(train=train, measure=False))
        report: PreflightReport = job.result(timeout=LONG)
        return report

    alone, many = check(1), check(base.places + 1)

    assert alone.ready
    assert not many.ready
    assert "processes were asked for, and this machine has" in many.problems[0].what
    each = alone.memory_bytes + dict(alone.memory_parts)["weights"]
    assert many.memory_bytes == pytest.approx((base.places + 1) * each, rel=0.01)


def test_a_launch_on_several_machines_is_written_out(service: Service) -> None:
    train = rq.Train(**{**LEARNS, "name": "far away", "processes": 8, "accumulation": 8})

    launch = service.prepare_launch(train, machines=2)

    assert "--nnodes 2 --nproc_per_node 4 --rdzv_backend c10d " in launch.command
    assert launch.command.endswith(f"-m backend.engine run {launch.folder}")
    run = service.runs.get(launch.run_id)
    assert (run.status().state, run.is_alive()) == ("queued", True)
    assert service.runs.sweep("Gone.") == []
    with pytest.raises(InvalidRequest, match="8 processes cannot be shared evenly by 3 machines"):
        service.prepare_launch(train, machines=3)


def test_only_the_leader_writes(service: Service) -> None:
    launch = service.prepare_launch(rq.Train(**{**LEARNS, "name": "quiet"}))
    run = FollowingRun(Path(launch.folder), 1)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}

    run.claim(launched=True)
    log = RunLog(run, control=None)  # type: ignore[arg-type]
    log.begin(step=0, total_steps=3, seconds=0.0, resumed=False)
    log.failed(WorkbenchError("Something."))
    log.close()

    after = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert after.pop(run.folder / "output-2.log")
    assert after == before


def test_a_stop_of_an_earlier_sitting_is_forgotten(service: Service) -> None:
    launch = service.prepare_launch(rq.Train(**{**LEARNS, "name": "told before"}))
    run = service.runs.get(launch.run_id)
    run.tell("stop")

    launched._forget_old_words(run, begun=time.time() - 60)
    assert run.told() == "stop"
    launched._forget_old_words(run, begun=time.time() + 60)
    assert run.told() == ""


def test_a_run_that_waits_can_be_discarded(service: Service) -> None:
    launch = service.prepare_launch(rq.Train(**{**LEARNS, "name": "never mind"}))

    with pytest.raises(InvalidRequest, match="already"):
        service.start(rq.Train(**{**LEARNS, "name": "never mind"}))
    service.discard(launch.run_id)

    assert "never mind" not in [run.name for run in service.snapshot().runs]
    with pytest.raises(NotFound):
        service.discard(launch.run_id)


def test_a_demo_trains_in_one_process(tmp_path: Path) -> None:
    with Service(Settings(workspace=tmp_path, runtime="inline", demo=True)) as service:
        train = rq.Train(**{**LEARNS, "name": "shared"})

        with pytest.raises(Unsupported, match="This shared demo trains in one process"):
            service.start(train, caller="page")
        with pytest.raises(Unsupported, match="This shared demo trains in one process"):
            service.prepare_launch(train, caller="page")


def test_a_lost_connection_is_told_from_other_errors() -> None:
    ranks = Ranks(rank=0, world=2)
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")

    assert ranks.lost(broken)
    assert not ranks.lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not Ranks().lost(broken)
