"""Where no worker can be started, or what it says cannot be read: everyone who waits is told."""

import errno
from collections.abc import Callable
from typing import Any

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.errors import WorkbenchError, WorkerDied
from tests.backend.conftest import FACTS, ScriptedRuntime

HELLO = rq.Chat(messages=[rq.Message(role="user", content="Hello")])


def test_all_are_told_where_no_new_worker_can_start(
    scripted: Callable[[], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ScriptedRuntime] = []

    def start(settings: Settings, on_message: Any, on_exit: Any) -> ScriptedRuntime:
        if len(made) == 1:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        made.append(ScriptedRuntime(on_message, on_exit))
        return made[-1]

    monkeypatch.setattr("backend.service.engine_client.start_runtime", start)
    service = scripted()
    service.start(rq.LoadModel(source="starter"))
    made[0].session(FACTS, [])
    made[0].answer(FACTS)
    chat = service.start(HELLO)
    look = service.start(rq.Similarity(names=["a", "b"]))

    made[0].on_exit("it was killed")

    for job in (chat, look):
        with pytest.raises(WorkerDied, match="cannot be started: Cannot allocate memory"):
            job.result(timeout=0)
    down = service.snapshot()
    assert (down.phase, down.job) == ("down", None)
    assert down.notice is not None
    assert "press Start again" in down.notice.text
    with pytest.raises(WorkerDied, match="cannot be started"):
        service.restore()

    made.clear()  # memory is there again
    job = service.restore()
    assert job is not None
    made[0].session(FACTS, [])
    made[0].answer(FACTS)
    assert service.snapshot().phase == "ready"


def test_a_service_without_a_worker_can_try_again(
    scripted: Callable[[], Service], monkeypatch: pytest.MonkeyPatch, engines: list[ScriptedRuntime]
) -> None:
    short, made = [True], list[ScriptedRuntime]()

    def start(settings: Settings, on_message: Any, on_exit: Any) -> ScriptedRuntime:
        if short[0]:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        made.append(ScriptedRuntime(on_message, on_exit))
        return made[-1]

    monkeypatch.setattr("backend.service.engine_client.start_runtime", start)
    service = scripted()
    notice = service.snapshot().notice
    assert (service.snapshot().phase, notice and notice.kind) == ("down", "bad")

    short[0] = False
    assert service.restore() is not None
    assert made[0].operations == ["load-model"]


def test_a_result_that_cannot_be_read_ends_its_job(
    service: Service, engine: ScriptedRuntime
) -> None:
    job = service.start(rq.Score(texts=["x"], variants=[[]]))

    engine.tell("result", result={"scores": None})

    with pytest.raises(WorkbenchError, match="result could not be read"):
        job.result(timeout=0)
    assert service.snapshot().job is None


@pytest.mark.parametrize("broken", [{"type": "session"}, {"type": "progress"}, {"type": "paused"}])
def test_a_broken_message_ends_nothing(
    service: Service, engine: ScriptedRuntime, broken: dict[str, Any]
) -> None:
    job = service.start(HELLO)

    engine.on_message({"id": job.id, **broken})

    assert not job.done()
    engine.answer(rs.Answer(text="Hi", tokens=1, seconds=0.1))
    assert job.result(timeout=0).text == "Hi"


def test_a_death_that_cannot_be_written_down_is_told_all_the_same(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.start(HELLO)

    def broken(*args: Any) -> str:
        raise PermissionError("no")

    monkeypatch.setattr("backend.service.recovery.death_text", broken)
    engine.on_exit("it was killed")

    with pytest.raises(WorkerDied, match="it was killed"):
        job.result(timeout=0)
