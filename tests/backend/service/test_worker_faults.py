"""Faults of the real worker with the real model: nothing is lost, and each says what to do."""

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

from backend import Service, Settings
from backend import requests as rq
from backend.errors import DiskFull, OutOfMemory, Stopped, WorkerDied
from backend.runs.events import Curve, EventReader, curve
from backend.runs.run_store import Run, Runs
from backend.runs.run_summary import describe
from backend.service.jobs import Job
from backend.service.recovery import BY_ITSELF, REBUILDING
from backend.settings import PROJECT
from tests.backend.conftest import ScriptedRuntime
from tests.engines import engines

pytestmark = pytest.mark.slow

TEXTS = ["Where is the cat?", "Arr, the cat be on the mat!"]
QUICK: dict[str, Any] = {"data": "starter:pirate", "tokens_per_step": 128, "precision": "fp32"}
LONG = {"epochs": 1000, "max_steps": 100_000, "save_every": 5}
LOADING_S = 120  # generous: other work may share the machine

USE_AN_ADAPTER_AND_TRAIN_ANOTHER = """
import json, sys, time
from backend import Service, Settings, requests as rq
service = Service(Settings(workspace=sys.argv[1]))
quick = json.loads(sys.argv[2])
def do(request):
    return service.start(request).result(timeout=240)
do(rq.LoadModel(source="starter"))
do(rq.Train(**quick, name="kept", max_steps=3))
do(rq.SetActive(adapters=[("kept", 0.5)]))
scores = do(rq.Score(texts=json.loads(sys.argv[3]), variants=[[], [("kept", 0.5)]])).scores
job = service.start(rq.Train(**quick, name="cut off", max_steps=60, save_every=5))
print(json.dumps([job.run_id, scores]), flush=True)
time.sleep(600)
"""
KEEP_TRAINING = """
import sys, time
from backend import Service, Settings, requests as rq
service = Service(Settings(workspace=sys.argv[1]))
service.start(rq.LoadModel(source="starter")).result(timeout=120)
job = service.start(rq.Train(
    name="orphan", tokens_per_step=128, epochs=1000, save_every=5, precision="fp32"))
print(job.run_id, flush=True)
time.sleep(600)
"""


def wait_until(happened: Callable[[], Any], timeout: float) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := happened()):
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a worker process and the starter; tests name their adapters apart."""
    with Service(Settings(workspace=tmp_path_factory.mktemp("workspace"))) as service:
        service.start(rq.LoadModel(source="starter")).result(timeout=LOADING_S)
        yield service


def scores(service: Service, variant: rq.Variant) -> list[float]:
    job = service.start(rq.Score(texts=TEXTS, variants=[variant]))
    values: list[float] = job.result(timeout=60).scores[0]
    return values


def run_of(service: Service, job: Job) -> Run:
    assert job.run_id is not None
    return service.runs.get(job.run_id)


def curve_of(run: Run) -> Curve:
    """Return what the disk tells, as another process sees it."""
    return curve(EventReader(run.events_file).poll())


def is_ready(service: Service) -> bool:
    snapshot = service.snapshot()
    return snapshot.phase == "ready" and snapshot.job is None


def test_a_killed_worker_loses_nothing(service: Service) -> None:
    service.start(rq.Train(**QUICK, name="kept", max_steps=3)).result(timeout=120)
    service.start(rq.SetActive(adapters=[("kept", 0.5)])).result(timeout=60)
    before = service.snapshot().base, scores(service, [("kept", 0.5)])
    job = service.start(rq.Train(**QUICK, name="killed", max_steps=60, save_every=5))
    run = run_of(service, job)
    wait_until(lambda: len(service.curve(run.id).step) >= 12, 120)

    os.kill(run.status().pid, signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(WorkerDied) as caught:
        job.result(timeout=30)
    noticed = time.monotonic() - killed

    assert noticed < 10
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert step >= 10
    assert str(caught.value) == (
        "Training killed was interrupted. The model process ended: it was killed, by someone or "
        f"because the machine ran out of memory. Resume continues from step {step}. "
        "The session is restored automatically."
    )
    summary = describe(run)
    assert (summary.state, summary.resumable) == ("interrupted", True)
    assert summary.cure == "Resume continues from the last checkpoint."
    notice = service.snapshot().notice
    assert notice is not None
    assert notice.text == str(caught.value).replace(BY_ITSELF, REBUILDING)

    wait_until(lambda: is_ready(service), LOADING_S)
    after = service.snapshot()
    assert after.base is not None
    assert before[0] is not None
    assert after.base.fingerprint == before[0].fingerprint
    assert after.active == [("kept", 0.5)]
    assert scores(service, [("kept", 0.5)]) == before[1]

    resumed = service.start(rq.Resume(run_id=run.id)).result(timeout=120)
    assert (resumed.state, resumed.steps) == ("finished", 60)
    assert service.curve(run.id).step == list(range(1, 61))
    assert (step, "resumed") in service.curve(run.id).marks
    assert service.snapshot().active == [("kept", 0.5)]


def test_a_stopped_run_is_saved_and_the_page_could_look_ahead_meanwhile(service: Service) -> None:
    job = service.start(rq.Train(**QUICK, **LONG, name="stopped"))
    run = run_of(service, job)
    wait_until(lambda: service.curve(run.id).step, 120)

    preview = service.start(rq.PreviewData(data="starter:pirate", rows=2)).result(timeout=LOADING_S)
    meanwhile = service.snapshot()
    service.stop()
    result = job.result(timeout=60)

    assert len(preview.examples) == 2
    assert (meanwhile.phase, meanwhile.base is not None) == ("training", True)
    assert result.state == "stopped"
    summary = describe(run)
    assert (summary.state, summary.step, summary.resumable) == ("stopped", result.steps, True)
    assert service.library.get("stopped").steps == result.steps
    assert scores(service, [("stopped", 1.0)]) != scores(service, [])
    curve = service.curve(run.id)
    assert curve.step == list(range(1, result.steps + 1))


def test_a_second_stop_ends_the_run_in_the_middle_of_a_step(service: Service) -> None:
    before = scores(service, [])
    slow = {**QUICK, **LONG, "accumulation": 32, "save_every": 1}
    job = service.start(rq.Train(**slow, name="ended"))
    run = run_of(service, job)
    wait_until(run.latest_checkpoint, 120)

    service.stop()
    service.stop()
    with pytest.raises(Stopped, match="Stopped immediately on request"):
        job.result(timeout=60)

    assert describe(run).state == "stopped"
    assert describe(run).resumable
    assert "ended" not in [info.name for info in service.library.all()]
    assert scores(service, []) == before


@pytest.mark.parametrize("half", ["weights", "optimiser"])
def test_a_checkpoint_that_breaks_off_leaves_the_old_one_to_resume(
    service: Service, half: str
) -> None:
    """The worker's files are limited in size, so writing fails half way, as on a full disk."""
    fields = {**QUICK, "name": f"half {half}", "adapter": rq.Lora(rank=32)}
    job = service.start(rq.Train(**fields, epochs=1000, max_steps=40, save_every=10))
    run = run_of(service, job)
    checkpoint = wait_until(run.latest_checkpoint, 120)
    weights = (checkpoint / "adapter_model.safetensors").stat().st_size
    worker = psutil.Process(run.status().pid)
    limits = worker.rlimit(psutil.RLIMIT_FSIZE)

    worker.rlimit(
        psutil.RLIMIT_FSIZE, (weights // 2 if half == "weights" else weights * 3 // 2, -1)
    )
    try:
        with pytest.raises(DiskFull) as caught:
            job.result(timeout=120)
    finally:
        worker.rlimit(psutil.RLIMIT_FSIZE, limits)

    assert "What was saved before is unchanged." in caught.value.cure
    whole = run.latest_checkpoint()
    assert whole is not None
    assert (whole / "optimizer.pt").stat().st_size > weights
    assert [path.name for path in run.checkpoints.iterdir() if path.name.startswith(".")] == []
    assert (describe(run).state, describe(run).resumable) == ("failed", True)
    resumed = service.start(rq.Resume(run_id=run.id)).result(timeout=120)
    assert (resumed.state, resumed.steps) == ("finished", 40)
    assert service.curve(run.id).step == list(range(1, 41))


def test_running_out_of_memory_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path, memory_limit_bytes=700 * 1024**2)
    with Service(settings) as service:
        service.start(rq.LoadModel(source="starter")).result(timeout=LOADING_S)
        before = scores(service, [])
        big = {**QUICK, "tokens_per_step": 1_000_000}

        job = service.start(rq.Train(**big, name="too big"))
        with pytest.raises(OutOfMemory) as caught:
            job.result(timeout=120)

        assert caught.value.what.startswith("The machine ran out of memory. The largest part is")
        assert caught.value.cure.startswith("Retry with")
        assert describe(run_of(service, job)).retry
        assert describe(run_of(service, job)).state == "failed"
        assert describe(run_of(service, job)).message == caught.value.what
        assert scores(service, []) == before
        small = service.start(rq.Train(**QUICK, name="small enough", max_steps=3))
        assert small.result(timeout=120).state == "finished"
        assert scores(service, []) == before


def test_a_killed_app_takes_its_worker_along_and_the_next_one_knows(
    tmp_path: Path, engines: list[ScriptedRuntime]
) -> None:
    app = subprocess.Popen(
        [sys.executable, "-c", KEEP_TRAINING, str(tmp_path)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert app.stdout is not None
        run = Runs(tmp_path / "runs").get(app.stdout.readline().strip())
        wait_until(run.latest_checkpoint, 120)
        worker = psutil.Process(run.status().pid)
    finally:
        app.kill()
        app.communicate()

    worker.wait(timeout=30)
    assert run.status().state == "running"
    with Service(Settings(workspace=tmp_path)) as service:
        summary = service.snapshot().runs[0]

    assert (summary.state, summary.resumable) == ("interrupted", True)
    assert summary.message == "The app ended while this run was training."
    assert summary.cure == "Resume continues from the last checkpoint."
    points = service.curve(run.id).step
    assert points == list(range(1, len(points) + 1))


@pytest.mark.timeout(600)
def test_after_a_killed_app_the_next_one_has_the_session_and_goes_on(tmp_path: Path) -> None:
    script = [sys.executable, "-c", USE_AN_ADAPTER_AND_TRAIN_ANOTHER]
    app = subprocess.Popen(
        [*script, str(tmp_path), json.dumps(QUICK), json.dumps(TEXTS)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert app.stdout is not None
        run_id, (bare, kept) = json.loads(app.stdout.readline())
        run = Runs(tmp_path / "runs").get(run_id)
        wait_until(lambda: len(curve_of(run).step) >= 12, 240)
        worker = psutil.Process(run.status().pid)
    finally:
        app.kill()
        app.communicate()
    worker.wait(timeout=60)
    before = curve_of(run)
    assert 12 <= before.step[-1] < 60  # in the middle of it

    with Service(Settings(workspace=tmp_path)) as service:
        service.restore()
        wait_until(lambda: is_ready(service), LOADING_S)
        assert service.snapshot().active == [("kept", 0.5)]
        assert [scores(service, []), scores(service, [("kept", 0.5)])] == [bare, kept]

        checkpoint = run.latest_checkpoint()
        assert checkpoint is not None
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        summary = next(each for each in service.snapshot().runs if each.id == run_id)
        assert (summary.state, summary.resumable) == ("interrupted", True)
        resumed = service.start(rq.Resume(run_id=run_id)).result(timeout=240)

        assert (resumed.state, resumed.steps) == ("finished", 60)
        points = service.curve(run_id)
        assert points.step == list(range(1, 61))
        assert points.loss[:step] == before.loss[:step]
        assert (step, "resumed") in points.marks
        assert service.snapshot().active == [("kept", 0.5)]
        assert scores(service, [("kept", 0.5)]) == kept
        assert scores(service, [("cut off", 1.0)]) != bare


def test_a_worker_that_dies_of_its_own_recipe_is_not_started_for_ever(service: Service) -> None:
    first = engines()[0]
    first.kill()
    wait_until(lambda: service.snapshot().phase == "loading", 30)
    second = wait_until(lambda: [child for child in engines() if child.pid != first.pid], 30)[0]
    second.kill()
    wait_until(lambda: service.snapshot().phase == "down", 30)

    snapshot = service.snapshot()
    assert (snapshot.base, snapshot.job) == (None, None)
    assert snapshot.notice is not None
    assert snapshot.notice.text.endswith(
        "It ended while the session was being restored, so that was cancelled. Load a base."
    )
    assert [child for child in engines() if child.pid not in (first.pid, second.pid)] == []
    service.start(rq.LoadModel(source="starter")).result(timeout=LOADING_S)
    assert service.snapshot().phase == "ready"
