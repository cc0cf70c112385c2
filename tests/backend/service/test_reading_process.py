"""Looks at foreign files: in a process of their own that can be ended, and the session goes on."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.errors import Stopped, WorkbenchError, WorkerDied
from tests.backend.conftest import FACTS, ScriptedRuntime

Engines = list[ScriptedRuntime]
LOOK = rq.PreviewData(data="starter:pirate")
SEEN = rs.DataPreview(rows=1, problems=[], stats=None, examples=[])


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Engines:
    """The reading processes that are started, in order."""
    started: Engines = []

    def start(settings: Settings, on_message: Any, on_exit: Any) -> ScriptedRuntime:
        started.append(ScriptedRuntime(on_message, on_exit))
        return started[-1]

    monkeypatch.setattr("backend.service.background_jobs.start_reading", start)
    monkeypatch.setattr("backend.service.background_jobs.SHOWN_AFTER_S", 0.0)
    monkeypatch.setattr("backend.service.reading_process.STOP_GRACE_S", 0.01)
    monkeypatch.setattr("backend.service.reading_process.START_S", 0.0)
    return started


@pytest.fixture
def make(engines: Engines, readers: Engines, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Make a service that uses processes, with a base loaded."""
    made: list[Service] = []

    def make(**fields: Any) -> Service:
        service = Service(Settings(workspace=tmp_path / "p", runtime="process", **fields))
        made.append(service)
        service.start(rq.LoadModel(source="starter"))
        engines[0].session(FACTS, [])
        engines[0].answer(FACTS)
        return service

    yield make
    for service in made:
        service.close()


@pytest.fixture
def service(make: Callable[..., Service]) -> Service:
    return make()


def wait(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.005)


def test_a_look_leaves_the_worker_alone_and_keeps_its_process(
    service: Service, engines: Engines, readers: Engines
) -> None:
    first = service.start(LOOK)
    readers[0].answer(SEEN)
    service.start(rq.PreviewData(data="starter:polite"))

    assert first.result(timeout=0) == SEEN
    assert engines[0].operations == ["load-model"]
    assert readers[0].operations == ["preview-data", "preview-data"]
    assert readers[0].sent[0]["base"]["fingerprint"] == FACTS.fingerprint


def test_one_look_at_a_time_and_in_order(service: Service, readers: Engines) -> None:
    jobs = [service.start(LOOK) for _ in range(3)]

    assert len(readers[0].operations) == 1
    for job in jobs:
        readers[0].answer(SEEN)
        assert job.result(timeout=0) == SEEN


def test_a_look_that_hangs_is_shown_and_ended_and_the_next_one_goes_on(
    service: Service, engines: Engines, readers: Engines
) -> None:
    hanging, after = service.start(LOOK), service.start(LOOK)
    time.sleep(0.01)
    shown = service.snapshot().side_jobs

    service.stop_side(hanging.id)

    with pytest.raises(Stopped, match="Reading data was stopped on request"):
        hanging.result(timeout=10)
    assert [job.title for job in shown] == ["Reading data"] * 2
    assert readers[0].killed
    wait(lambda: len(readers) == 2)
    readers[0].on_exit("it was killed")  # the old one's end is no news
    readers[1].answer(SEEN)
    assert after.result(timeout=0) == SEEN
    assert service.snapshot().phase == "ready"
    assert not engines[0].killed


def test_a_look_that_waits_is_stopped_at_once(service: Service, readers: Engines) -> None:
    first, waiting = service.start(LOOK), service.start(LOOK)
    time.sleep(0.01)

    service.stop_side(waiting.id)

    with pytest.raises(Stopped):
        waiting.result(timeout=0)
    assert not first.done()


def test_a_look_without_an_end_is_ended_by_itself(
    make: Callable[..., Service], readers: Engines
) -> None:
    job = make(look_seconds=0.05).start(LOOK)

    with pytest.raises(WorkbenchError, match="took longer than") as caught:
        job.result(timeout=10)

    assert "chat template never ends" in caught.value.cure
    assert readers[0].killed


def test_the_time_of_a_look_begins_when_its_process_is_ready(
    make: Callable[..., Service], readers: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.service.reading_process.START_S", 60.0)
    job = make(look_seconds=0.05).start(LOOK)
    assert not job.wait(0.2)

    readers[0].on_message({"type": "ready", "pid": 1})

    with pytest.raises(WorkbenchError, match="took longer than"):
        job.result(timeout=10)


def test_a_reading_process_that_dies_fails_its_look_alone(
    service: Service, readers: Engines
) -> None:
    lost, after = service.start(LOOK), service.start(LOOK)

    readers[0].on_exit("it was killed")

    with pytest.raises(WorkerDied, match=r"Reading data was interrupted. .* it was killed"):
        lost.result(timeout=0)
    readers[1].answer(SEEN)
    assert after.result(timeout=0) == SEEN


def test_a_look_that_gets_no_process_says_so(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr("backend.service.background_jobs.start_reading", refuse)

    with pytest.raises(WorkerDied, match="cannot start a process"):
        service.start(LOOK).result(timeout=0)


def test_the_death_of_the_worker_is_not_the_end_of_a_look(
    service: Service, engines: Engines, readers: Engines
) -> None:
    job = service.start(LOOK)

    engines[0].on_exit("it was killed")

    assert not job.done()
    readers[0].answer(SEEN)
    assert job.result(timeout=0) == SEEN


def report(**fields: Any) -> rs.PreflightReport:
    numbers = dict.fromkeys(
        ("trainable_parameters", "total_parameters", "steps", "memory_bytes",
         "memory_available_bytes", "disk_bytes", "disk_free_bytes", "changed_settings"), 1
    )  # fmt: skip
    given = {"ready": True, "problems": [], "notes": [], "matched_modules": [], "stats": None,
             "seconds": None, "seconds_from": "", **numbers, **fields}  # fmt: skip
    return rs.PreflightReport(**given)


def test_an_idle_worker_completes_a_check_that_needs_the_weights(
    service: Service, engines: Engines, readers: Engines
) -> None:
    job = service.start(rq.Preflight(train=rq.Train(name="pirate"), measure=True))
    readers[0].answer(report())

    assert not job.done()
    assert engines[0].operations == ["load-model", "preflight"]
    engines[0].answer(report(seconds=12.0, seconds_from="one timed step"))
    assert job.result(timeout=0).seconds == 12.0


@pytest.mark.parametrize("why", ["busy", "known", "not ready"])
def test_a_check_is_whole_without_the_worker(
    service: Service, engines: Engines, readers: Engines, why: str
) -> None:
    if why == "busy":
        service.start(rq.Train(name="polite"))
    job = service.start(rq.Preflight(train=rq.Train(name="pirate"), measure=True))

    readers[0].answer(report(ready=why != "not ready", seconds=3.0 if why == "known" else None))

    assert job.done()
    assert "preflight" not in engines[0].operations


def test_what_hangs_in_the_worker_is_ended_with_it_and_that_is_said(
    service: Service, engines: Engines
) -> None:
    job = service.start(rq.Similarity(names=["a", "b"]))
    time.sleep(0.01)
    service.stop_side(job.id)
    assert not engines[0].killed

    service.stop_side(job.id)
    wait(lambda: engines[0].killed)
    engines[0].on_exit("it was killed")

    with pytest.raises(WorkerDied, match="not stop on request, so the model process was killed"):
        job.result(timeout=0)
    wait(lambda: len(engines) == 2)
    assert engines[1].operations == ["load-model"]
