"""A chat template without an end, in the real processes: it is stopped, and all else goes on."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from backend import Service, Settings
from backend import requests as rq
from backend.errors import ModelError, Stopped, WorkbenchError, WorkerDied
from tests.engine.tiny import write_base

pytestmark = pytest.mark.slow

ENDLESS = (
    "{% for m in messages %}{{ m['content'] }}{% if 'HANG' in m['content'] %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on a base whose template hangs on some conversations."""
    base = write_base(tmp_path_factory.mktemp("base"))
    (base / "chat_template.jinja").write_text(ENDLESS, encoding="utf-8")
    workspace = tmp_path_factory.mktemp("workspace")
    with Service(Settings(workspace=workspace, look_seconds=20)) as service:
        service.start(rq.LoadModel(source=str(base))).result(timeout=120)
        yield service


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    data = tmp_path / "data.jsonl"
    row = json.dumps({"prompt": "HANG", "completion": "b"})
    data.write_text("\n".join([row] * 20), encoding="utf-8")
    return data


def wait(happened: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := happened()):
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.05)
    return value


def talk(content: str) -> rq.Chat:
    return rq.Chat(messages=[rq.Message(role="user", content=content)], max_new_tokens=3)


def test_a_preview_that_hangs_is_shown_and_stopped_while_the_model_answers(
    service: Service, endless: Path
) -> None:
    hanging = service.start(rq.PreviewData(data=str(endless)))
    waiting = service.start(rq.PreviewData(data="starter:pirate"))
    shown = wait(lambda: service.snapshot().side_jobs)

    assert service.start(talk("hi")).result(timeout=60).tokens
    service.stop_side(shown[0].id)
    with pytest.raises(Stopped):
        hanging.result(timeout=30)

    assert waiting.result(timeout=60).examples
    assert service.snapshot().phase == "ready"


def test_a_check_that_hangs_ends_by_itself(service: Service, endless: Path) -> None:
    job = service.start(rq.Preflight(train=rq.Train(name="endless", data=str(endless))))

    with pytest.raises(WorkbenchError, match="took longer than 20 seconds"):
        job.result(timeout=60)


def worker() -> psutil.Process:
    children = psutil.Process().children()
    return next(each for each in children if each.cmdline()[-1:] == ["backend.engine"])


def test_a_chat_whose_template_has_no_end_ends_by_itself(service: Service) -> None:
    before = worker().pid

    with pytest.raises(ModelError, match="did not finish within 10 seconds"):
        service.start(talk("HANG")).result(timeout=60)

    assert worker().pid == before
    assert service.start(talk("hi")).result(timeout=60).tokens


def test_a_worker_that_hangs_is_ended_only_when_asked_twice(service: Service) -> None:
    process = worker()
    process.suspend()
    job = service.start(talk("hi"))
    service.stop()
    assert not job.wait(7)
    assert process.is_running()
    service.stop()

    with pytest.raises(WorkerDied, match="did not stop on request"):
        job.result(timeout=60)
    wait(lambda: service.snapshot().phase == "ready", 120)
    assert service.start(talk("hi")).result(timeout=60).tokens
