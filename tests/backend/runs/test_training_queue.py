"""The queue of trainings: order, persistence, and what does not stop it."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from backend.errors import DataError, DiskFull, InvalidRequest, NotFound
from tests.backend.conftest import FACTS, ScriptedRuntime

pytestmark = pytest.mark.usefixtures("answered_checks")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.runs.training_queue.LOOK_EVERY_S", 0.01)


def train(name: str) -> rq.Train:
    return rq.Train(name=name)


def names(service: Service) -> list[str]:
    return [each.name for each in service.snapshot().queue]


def trained(engine: ScriptedRuntime) -> list[str]:
    return [m["request"]["name"] for m in engine.sent if m.get("op") == "train"]


def until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        time.sleep(0.01)
    raise TimeoutError("It does not happen.")


def fail(engine: ScriptedRuntime) -> None:
    engine.tell("error", error=DataError("Row 3 is empty.").to_dict())


def test_trainings_start_one_after_the_other_in_their_order(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.start(train("first"))
    service.enqueue(train("second"))
    service.enqueue(train("third"))
    time.sleep(0.1)
    assert trained(engine) == ["first"]
    assert names(service) == ["second", "third"]

    fail(engine)
    until(lambda: trained(engine) == ["first", "second"])
    assert names(service) == ["third"]

    fail(engine)
    until(lambda: trained(engine) == ["first", "second", "third"])
    assert names(service) == []


def test_what_waits_outlives_the_app_and_waits_to_be_told(
    service: Service, engine: ScriptedRuntime, engines: list[ScriptedRuntime],
    scripted: Callable[[], Service],
) -> None:  # fmt: skip
    service.start(train("first"))
    service.enqueue(train("second"))
    service.close()

    later = scripted()
    later.start(rq.LoadModel(source="starter"))
    engines[-1].session(FACTS, [])
    engines[-1].answer(FACTS)
    time.sleep(0.1)
    assert names(later) == ["second"]
    assert trained(engines[-1]) == []

    later.run_queue()
    until(lambda: trained(engines[-1]) == ["second"])


def test_one_is_taken_out_again(service: Service, engine: ScriptedRuntime) -> None:
    service.start(train("first"))
    waiting = service.enqueue(train("second"))
    version = service.snapshot().version

    service.unqueue(waiting.id)

    assert names(service) == []
    assert service.snapshot().version > version
    with pytest.raises(NotFound, match="no longer waiting"):
        service.unqueue(waiting.id)
    fail(engine)
    time.sleep(0.1)
    assert trained(engine) == ["first"]


def test_a_name_that_waits_is_taken(service: Service, engine: ScriptedRuntime) -> None:
    service.start(train("first"))
    service.enqueue(train("second"))

    assert service.free_name("second") == "second 2"
    with pytest.raises(InvalidRequest, match="'second 2' is free"):
        service.enqueue(train("second"))


def test_one_for_another_base_lets_the_others_pass(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.start(train("first"))
    service.enqueue(train("elsewhere"))
    engine.session(FACTS.model_copy(update={"fingerprint": "other", "name": "other"}), [])
    service.enqueue(train("here"))

    fail(engine)
    until(lambda: trained(engine) == ["first", "here"])

    (left,) = service.snapshot().queue
    assert (left.name, left.waits_for) == ("elsewhere", "the base starter, which is not loaded")


def test_one_that_cannot_start_is_said_and_the_next_has_its_turn(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.start(train("first"))
    service.enqueue(rq.Train(name="second"))
    service.queue.add(rq.Train(name="lost", start_from="nobody"), FACTS, "local")
    service.queue.add(train("third"), FACTS, "local")
    fail(engine)
    until(lambda: trained(engine) == ["first", "second"])

    fail(engine)
    until(lambda: trained(engine) == ["first", "second", "third"])

    notice = service.snapshot().notice
    assert notice is None or "lost was next but could not start" in notice.text


def refuse_writing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let only files of these names find the disk full."""
    original = os.replace

    def replace(source: Any, target: Any) -> None:
        if not names or any(name in Path(target).name for name in names):
            raise OSError(28, "No space left on device")
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)


def test_a_training_whose_turn_comes_on_a_full_disk_goes_on_waiting(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.service.waiting_runs.ROOM_EVERY_S", 0.05)
    service.start(train("first"))
    service.enqueue(train("second"))
    service.enqueue(train("third"))

    with monkeypatch.context() as full:
        refuse_writing(full)
        fail(engine)
        until(lambda: "waits for free disk space" in str(service.snapshot().notice))
        time.sleep(0.2)
        assert trained(engine) == ["first"]
        assert names(service) == ["second", "third"]
        notice = service.snapshot().notice
        assert notice is not None
        assert notice.text.startswith("second waits for free disk space: Could not write ")

    until(lambda: trained(engine) == ["first", "second"])
    assert names(service) == ["third"]
    assert [run.name for run in service.snapshot().runs] == ["second", "first"]


def test_a_training_that_began_leaves_the_queue_even_if_that_cannot_be_written_down(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start(train("first"))
    service.enqueue(train("second"))

    with monkeypatch.context() as full:
        refuse_writing(full, "queue.json")
        fail(engine)
        until(lambda: trained(engine) == ["first", "second"])
        assert names(service) == []

    fail(engine)
    time.sleep(0.2)
    assert trained(engine) == ["first", "second"]


def test_a_training_that_cannot_be_added_on_a_full_disk_is_refused(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start(train("first"))
    refuse_writing(monkeypatch, "queue.json")

    with pytest.raises(DiskFull, match=r"Could not write queue\.json"):
        service.enqueue(train("second"))

    assert names(service) == []


def test_a_queue_that_cannot_be_read_is_empty(
    tmp_path: Path, scripted: Callable[[], Service]
) -> None:
    (tmp_path / "queue.json").write_text("[{]")

    assert scripted().snapshot().queue == ()


def test_a_training_waits_where_the_disk_is_nearly_full(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]
    monkeypatch.setattr("backend.service.waiting_runs.ROOM_EVERY_S", 0.0)
    monkeypatch.setattr(
        "backend.runs.training_queue.shutil.disk_usage",
        lambda path: SimpleNamespace(free=20_000 if full[0] else 10**9),
    )
    service.enqueue(train("patient"))
    service.run_queue()
    until(lambda: service.snapshot().notice is not None)

    notice = service.snapshot().notice
    assert notice is not None
    assert "patient waits for free disk space: Only 20 KB are free" in notice.text
    assert names(service) == ["patient"]
    assert trained(engine) == []
    full[0] = False
    until(lambda: trained(engine) == ["patient"])
