"""The queue of trainings: order, persistence, and what does not stop it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from backend.errors import DataError, InvalidRequest, NotFound
from tests.backend.conftest import FACTS, ScriptedRuntime


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.training_queue.LOOK_EVERY_S", 0.01)


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
    with pytest.raises(NotFound, match="does not wait any more"):
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
    assert notice is None or "lost had its turn but did not start" in notice.text


def test_a_queue_that_cannot_be_read_is_empty(
    tmp_path: Path, scripted: Callable[[], Service]
) -> None:
    (tmp_path / "queue.json").write_text("[{]")

    assert scripted().snapshot().queue == ()
