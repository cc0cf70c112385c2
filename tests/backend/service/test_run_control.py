"""What a run can be told while it goes on, over a scripted engine."""

import pytest

from backend import Service
from backend import requests as rq
from backend import results as rs
from backend.errors import Busy, Stopped, WorkerDied
from tests.backend.conftest import FACTS, ScriptedRuntime

HELLO = rq.Chat(messages=[rq.Message(role="user", content="Hello")])
SCORE = rq.Score(texts=["x"], variants=[[]])


def half_trained(service: Service) -> rs.AdapterInfo:
    run = service.runs.all()[0]
    return rs.AdapterInfo(
        id=run.request.adapter_id,
        name=run.request.train.name,
        colour=run.request.colour,
        method="LoRA",
        rank=8,
        parameters=10,
        base_name=FACTS.name,
        base_fingerprint=FACTS.fingerprint,
        created=1.0,
        state="half-trained",
    )


def say_paused(service: Service, engine: ScriptedRuntime) -> None:
    info = half_trained(service).model_dump(mode="json")
    engine.on_message({"type": "paused", "id": run_job(service).id, "adapter": info})


def run_job(service: Service) -> rs.JobInfo:
    job = service.snapshot().job
    assert job is not None
    return job


def test_a_word_to_a_run_is_passed_on_at_once(service: Service, engine: ScriptedRuntime) -> None:
    service.start(rq.Train(name="pirate"))

    service.save_now()
    service.pause()
    assert run_job(service).pausing
    service.resume()

    assert engine.words == ["save", "pause", "resume"]
    assert not run_job(service).pausing


def test_the_session_is_paused_once_the_engine_says_so(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.start(rq.Train(name="pirate"))
    service.pause()
    assert service.snapshot().phase == "training"

    say_paused(service, engine)

    snapshot = service.snapshot()
    assert snapshot.phase == "paused"
    assert snapshot.job is not None
    assert (snapshot.job.paused, snapshot.job.pausing) == (True, False)
    assert snapshot.job.half_trained == half_trained(service)
    engine.on_message({"type": "unpaused", "id": snapshot.job.id})
    assert service.snapshot().phase == "training"


def test_only_what_asks_the_model_starts_while_a_run_is_paused(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.start(rq.Train(name="pirate"))
    say_paused(service, engine)

    for refused in (rq.SetActive(adapters=[]), rq.Train(name="polite"), rq.UnloadModel()):
        with pytest.raises(Busy, match=r"Training pirate is paused\. .* model can only answer"):
            service.start(refused)
    answer = service.start(SCORE)
    with pytest.raises(Busy, match="Scoring texts is still going on"):
        service.start(SCORE)
    assert run_job(service).answering == "Scoring texts"
    engine.answer(rs.Scores(scores=[[-1.0]], tokens=[1]))

    assert answer.result(timeout=0).tokens == [1]
    assert run_job(service).title == "Training pirate"
    service.start(SCORE)


@pytest.mark.parametrize("word", ["resume", "stop"])
def test_nobody_is_let_in_once_a_paused_run_is_to_go_on_or_to_end(
    service: Service, engine: ScriptedRuntime, word: str
) -> None:
    service.start(rq.Train(name="pirate"))
    say_paused(service, engine)

    getattr(service, word)()

    with pytest.raises(Busy, match="Training pirate is still going on"):
        service.start(SCORE)


def test_a_pause_that_was_taken_back_too_late_lets_nobody_in(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.start(rq.Train(name="pirate"))
    service.pause()
    service.resume()
    say_paused(service, engine)  # it was on its way already

    with pytest.raises(Busy, match="Training pirate is still going on"):
        service.start(SCORE)


def test_closing_an_answer_stops_it_and_not_the_paused_run(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.start(rq.Train(name="pirate"))
    say_paused(service, engine)
    pieces = service.chat(HELLO)

    pieces.close()

    assert [m["id"] for m in engine.sent if m.get("control") == "stop"] == [engine.sent[-2]["id"]]
    assert not run_job(service).stopping


def test_the_death_of_the_engine_ends_the_paused_run_and_the_answer(
    service: Service, engine: ScriptedRuntime
) -> None:
    training = service.start(rq.Train(name="pirate"))
    say_paused(service, engine)
    answer = service.start(SCORE)

    engine.on_exit("it was killed")

    for job in (training, answer):
        with pytest.raises(WorkerDied):
            job.result(timeout=0)
    assert service.snapshot().phase == "loading"  # the session is being rebuilt


def test_a_paused_run_that_ends_leaves_nothing_behind(
    service: Service, engine: ScriptedRuntime
) -> None:
    job = service.start(rq.Train(name="pirate"))
    say_paused(service, engine)

    error = Stopped("Ended at once, as asked.").to_dict()
    engine.on_message({"type": "error", "id": job.id, "error": error})

    assert service.snapshot().phase == "ready"
    service.start(rq.SetActive(adapters=[]))


def test_words_go_nowhere_where_no_run_goes_on(service: Service, engine: ScriptedRuntime) -> None:
    service.start(SCORE)

    service.pause()
    service.resume()
    service.save_now()

    assert engine.words == []
