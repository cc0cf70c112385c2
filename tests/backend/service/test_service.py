"""The facade over a scripted engine: its one lock, its recipe, its snapshot, death and return."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from backend import results as rs
from backend.errors import (
    Busy,
    InvalidRequest,
    NotFound,
    Stopped,
    Unsupported,
)
from tests.backend.conftest import FACTS, ScriptedRuntime

Make = Callable[[], Service]
Engines = list[ScriptedRuntime]
HELLO = rq.Chat(messages=[rq.Message(role="user", content="Hello")])


def add_adapter(service: Service, name: str) -> rs.AdapterInfo:
    info = rs.AdapterInfo(
        id=f"ad_{len(service.library.all()):06d}",
        name=name,
        colour=service.library.next_colour(),
        method="LoRA",
        rank=8,
        parameters=10,
        base_name="starter",
        base_fingerprint=FACTS.fingerprint,
        created=1.0,
    )
    service.library.folder(info.id).mkdir(parents=True)
    service.library.write_sidecar(service.library.folder(info.id), info)
    return info


# -- one job at a time ---------------------------------------------------------------------------


def test_a_second_job_is_told_which_one_is_running(service: Service) -> None:
    service.start(rq.Train(name="pirate"))

    for request in (rq.Train(name="polite"), rq.Score(texts=["x"], variants=[[]]), HELLO):
        with pytest.raises(Busy) as caught:
            service.start(request)
        assert str(caught.value) == ("Training pirate is still going on. Wait for it or stop it.")


def test_a_refused_job_leaves_no_run_behind(service: Service) -> None:
    service.start(HELLO)

    with pytest.raises(Busy):
        service.start(rq.Train(name="pirate"))

    assert service.snapshot().runs == []


def test_the_next_job_may_start_as_soon_as_the_result_is_there(
    service: Service, engine: ScriptedRuntime
) -> None:
    first = service.start(rq.Score(texts=["x"], variants=[[]]))
    started: list[str] = []

    def wait_and_start() -> None:
        first.result(timeout=30)
        started.append(service.start(rq.Score(texts=["y"], variants=[[]])).title)

    waiting = threading.Thread(target=wait_and_start)
    waiting.start()
    engine.answer(rs.Scores(scores=[[-1.0]], tokens=[1]))
    waiting.join(timeout=30)

    assert started == ["Scoring texts"]


def test_the_lock_is_free_after_an_error(service: Service, engine: ScriptedRuntime) -> None:
    job = service.start(rq.Score(texts=["x"], variants=[[]]))
    engine.tell("error", error=Unsupported("It cannot.", cure="Do not.").to_dict())

    with pytest.raises(Unsupported, match=r"It cannot\. Do not\."):
        job.result(timeout=0)
    service.start(rq.Score(texts=["x"], variants=[[]]))


def test_what_looks_ahead_is_never_busy(service: Service, engine: ScriptedRuntime) -> None:
    service.start(rq.Train(name="pirate"))

    service.start(rq.Preflight(train=rq.Train(name="polite")))
    service.start(rq.PreviewData(data="starter:pirate"))

    assert engine.operations == ["load-model", "train", "preflight", "preview-data"]
    assert service.snapshot().phase == "training"


def test_a_job_that_takes_long_says_so(service: Service) -> None:
    job = service.start(rq.Score(texts=["x"], variants=[[]]))

    with pytest.raises(TimeoutError, match="Scoring texts is not done after 0 s"):
        job.result(timeout=0)


# -- what is refused before it starts ------------------------------------------------------------


@pytest.mark.parametrize(
    "request_", [rq.Train(name="x"), rq.Score(texts=["x"], variants=[[]]), HELLO, rq.UnloadModel()]
)
def test_without_a_base_the_cure_is_to_load_one(scripted: Make, request_: rq.Request) -> None:
    service = scripted()

    with pytest.raises(NotFound) as caught:
        service.start(request_)

    assert str(caught.value) == "No base model is loaded. Load one first: the starter is quick."
    assert service.snapshot().job is None


def test_a_taken_name_is_refused_before_anything_starts(
    service: Service, engine: ScriptedRuntime
) -> None:
    add_adapter(service, "pirate")

    with pytest.raises(InvalidRequest, match="'Pirate 2' is free"):
        service.start(rq.Train(name="Pirate"))

    assert service.snapshot().runs == []
    assert engine.operations == ["load-model"]


def test_an_unknown_adapter_to_start_from_is_refused(service: Service) -> None:
    with pytest.raises(NotFound, match="no adapter called 'ghost'"):
        service.start(rq.Train(name="x", start_from="ghost"))

    assert service.snapshot().runs == []


def test_only_what_can_go_on_is_resumed(service: Service, engine: ScriptedRuntime) -> None:
    job = service.start(rq.Train(name="pirate"))
    engine.tell("error", error=Stopped("Ended at once.").to_dict())
    assert job.run_id is not None
    run = service.runs.get(job.run_id)

    with pytest.raises(NotFound, match="no checkpoint to resume from"):
        service.start(rq.Resume(run_id=run.id))
    (run.checkpoints / "checkpoint-5").mkdir()
    run.update(state="finished")
    with pytest.raises(InvalidRequest, match="is finished, so it cannot be resumed"):
        service.start(rq.Resume(run_id=run.id))
    run.update(state="stopped")
    engine.session(FACTS.model_copy(update={"name": "other", "fingerprint": "f"}), [])
    with pytest.raises(InvalidRequest, match="belongs to the base 'starter', but 'other'"):
        service.start(rq.Resume(run_id=run.id))
    with pytest.raises(NotFound, match="no run 'ghost'"):
        service.start(rq.Resume(run_id="ghost"))


def test_the_page_is_checked_and_python_is_not(
    service: Service, engine: ScriptedRuntime, tmp_path: Path
) -> None:
    outside = rq.PreviewData(data=str(tmp_path.parent / "data.jsonl"))

    with pytest.raises(InvalidRequest, match="The page may not use"):
        service.start(outside, caller="page")
    assert engine.operations == ["load-model"]
    service.start(outside)
    assert engine.operations == ["load-model", "preview-data"]


# -- chat ----------------------------------------------------------------------------------------


def test_an_answer_comes_piece_by_piece(service: Service, engine: ScriptedRuntime) -> None:
    pieces = service.chat(HELLO)
    engine.tell("piece", text="Good ")
    first = next(pieces)
    engine.tell("piece", text="day")
    engine.answer(rs.Answer(text="Good day", tokens=2, seconds=0.1))

    assert first == "Good "
    assert list(pieces) == ["day"]
    assert engine.words == []


def test_closing_an_answer_stops_it(service: Service, engine: ScriptedRuntime) -> None:
    pieces = service.chat(HELLO)
    engine.tell("piece", text="Good ")
    next(pieces)

    pieces.close()  # type: ignore[attr-defined]

    assert engine.words == ["stop"]


def test_closing_an_answer_that_nobody_began_to_read_stops_it(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.chat(HELLO).close()  # type: ignore[attr-defined]

    assert engine.words == ["stop"]


def test_closing_an_answer_that_is_done_stops_nothing_else(
    service: Service, engine: ScriptedRuntime
) -> None:
    pieces = service.chat(HELLO)
    engine.tell("piece", text="Good ")
    engine.answer(rs.Answer(text="Good", tokens=1, seconds=0.1))
    next(pieces)
    service.start(rq.Train(name="pirate"))

    pieces.close()  # type: ignore[attr-defined]

    assert engine.words == []


def test_an_answer_that_fails_raises_after_its_pieces(
    service: Service, engine: ScriptedRuntime
) -> None:
    pieces = service.chat(HELLO)
    engine.tell("piece", text="Good ")
    engine.tell("error", error=InvalidRequest("Too long.").to_dict())

    assert next(pieces) == "Good "
    with pytest.raises(InvalidRequest, match="Too long"):
        next(pieces)


# -- stop ----------------------------------------------------------------------------------------


def test_stopping_twice_asks_for_an_immediate_end(
    service: Service, engine: ScriptedRuntime
) -> None:
    job = service.start(rq.Train(name="pirate"))

    service.stop()
    assert engine.words == ["stop"]
    info = service.snapshot().job
    assert info is not None
    assert info.stopping
    service.stop()

    assert engine.words == ["stop", "abort"]
    engine.tell("error", error=Stopped("Ended at once, as asked.").to_dict())
    with pytest.raises(Stopped):
        job.result(timeout=0)


def test_an_engine_that_does_not_hear_is_killed(service: Service, engine: ScriptedRuntime) -> None:
    service.start(rq.Train(name="pirate"))

    service.stop()
    service.stop()
    for timer in threading.enumerate():
        if isinstance(timer, threading.Timer):
            timer.join(timeout=30)

    assert engine.killed


def test_stopping_when_nothing_runs_does_nothing(service: Service, engine: ScriptedRuntime) -> None:
    before = service.snapshot()

    service.stop()

    assert engine.words == []
    assert service.snapshot() == before


# -- snapshot ------------------------------------------------------------------------------------


def test_nothing_changed_means_the_same_version(service: Service) -> None:
    service.start(rq.Train(name="pirate"))
    snapshots = [service.snapshot() for _ in range(5)]

    assert all(snapshot == snapshots[0] for snapshot in snapshots)


def test_every_change_is_a_new_version(service: Service, engine: ScriptedRuntime) -> None:
    job = service.start(rq.Train(name="pirate"))
    assert job.run_id is not None
    run = service.runs.get(job.run_id)
    changes: list[Callable[[], object]] = [
        lambda: engine.tell("progress", text="step 1", fraction=0.1, seconds_left=9.0),
        lambda: run.update(step=1, loss=2.5),
        service.stop,
        lambda: add_adapter(service, "from another process"),
        lambda: service.library.discard("ad_000000"),
        lambda: engine.tell("error", error=Stopped("Ended.").to_dict()),
        lambda: service.start(rq.SetActive(adapters=[])),
        lambda: engine.session(FACTS, [("pirate", 0.5)]),
        lambda: engine.on_exit("it was killed"),
    ]
    before = service.snapshot()

    for change in changes:
        change()
        after = service.snapshot()
        assert after.version > before.version
        assert after.model_dump(exclude={"version"}) != before.model_dump(exclude={"version"})
        before = after


def test_memory_is_shown_once_it_changed_enough(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.service.worker_process.MEMORY_EVERY_S", 0.0)
    first = service.snapshot()

    engine.resident += 1000
    same = service.snapshot()
    engine.resident += 1_000_000
    other = service.snapshot()

    assert same == first
    assert other.version > first.version
    assert other.memory_bytes == 2_001_000


@pytest.mark.parametrize(
    ("request_", "phase"),
    [
        (rq.LoadModel(source="starter"), "loading"),
        (rq.Train(name="x"), "training"),
        (HELLO, "chatting"),
        (rq.SetActive(adapters=[]), "ready"),
    ],
    ids=["load", "train", "chat", "switch"],
)
def test_the_phase_follows_the_job(service: Service, request_: rq.Request, phase: str) -> None:
    assert service.snapshot().phase == "ready"

    service.start(request_)

    assert service.snapshot().phase == phase
