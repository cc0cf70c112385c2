"""A workspace that an earlier version wrote is read, gone on with, and answers as it did.

`version_0_1.zip` was made by version 0.1.0, before modules and packages got other names: three runs
(one of them stopped), their adapters, a blend that is on, and a training in the queue.
"""

import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend import Service, Settings
from backend import requests as rq

KEPT = Path(__file__).with_name("version_0_1.zip")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    workspace = tmp_path_factory.mktemp("earlier")
    with zipfile.ZipFile(KEPT) as file:
        file.extractall(workspace)
    with Service(Settings(workspace=workspace, runtime="inline")) as service:
        service.restore()
        deadline = time.monotonic() + 120
        while not (snapshot := service.snapshot()).active or snapshot.job is not None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield service


def test_the_session_is_as_it_was_left(service: Service) -> None:
    snapshot = service.snapshot()

    assert {info.name for info in snapshot.adapters} == {"pirate", "polite", "mix", "halted"}
    assert snapshot.active == [("mix", 0.8)]
    assert (service.opening, snapshot.irregular) == ([], "")


def test_every_run_is_listed_with_its_events(service: Service) -> None:
    runs = {run.name: run for run in service.snapshot().runs}

    assert {name: run.state for name, run in runs.items()} == {
        "pirate": "finished", "polite": "finished", "halted": "stopped",
    }  # fmt: skip
    assert all(service.curve(run.id).loss for run in runs.values())
    assert "SEGMENTS = [" in service.run_script(runs["pirate"].id)


def test_the_queue_still_holds_what_waits(service: Service) -> None:
    (waiting,) = service.snapshot().queue

    assert (waiting.name, waiting.data) == ("waiting", "starter:polite")


def test_adapters_answer_and_can_be_blended(service: Service) -> None:
    message = rq.Message(role="user", content="Where is the cat?")
    for name in ("pirate", "polite", "mix"):
        request = rq.Chat(messages=[message], variant=[(name, 1.0)], max_new_tokens=4)
        assert "".join(service.chat(request))
    made = rq.Combine(name="again", sources=[("pirate", 0.7), ("polite", 0.3)], method="cat")
    service.start(made).result(timeout=60)

    (pair,) = (
        service.start(
            rq.Score(texts=["The cat is on the mat."], variants=[[("mix", 1.0)], [("again", 1.0)]])
        )
        .result(timeout=60)
        .scores,
    )
    assert pair[0] == pair[1]


def test_a_stopped_run_goes_on_to_its_end(service: Service) -> None:
    run = next(run for run in service.snapshot().runs if run.name == "halted")

    done = service.start(rq.Resume(run_id=run.id)).result(timeout=300)

    assert (done.state, done.steps) == ("finished", 30)
