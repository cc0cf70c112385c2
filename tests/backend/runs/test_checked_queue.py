"""The queue checks a run when it is put in, and asks where its data has changed since."""

import time
from collections.abc import Callable

import pytest

from backend import Service
from backend import requests as rq
from backend import results as rs
from backend.errors import DataError, InvalidRequest, NotFound
from tests.backend.conftest import FACTS, LOOK, READY, ScriptedRuntime
from tests.backend.runs.test_training_queue import fail, names, train, trained, until

pytestmark = pytest.mark.usefixtures("answered_checks")

NOW = READY.model_copy(update={"mark": rs.DataMark(rows=120, content="now", examples="now")})
CHANGED = "pirate has changed since it was queued: 91 rows then, 120 now."


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.runs.training_queue.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("backend.service.waiting_runs.LISTEN_EVERY_S", 0.01)


def put_in(service: Service, name: str) -> str:
    """Queue a run whose data was as it was; the model is busy."""
    request = rq.Train(name=name, data="pirate.jsonl")
    return service.queue.add(request, FACTS, "local", READY.mark).id


def test_a_run_with_problems_is_refused_at_once_with_the_forms_sentences(
    service: Service, engine: ScriptedRuntime
) -> None:
    problem = rs.Problem(what="Row 3 has no answer.", cure="Fix it.")
    engine.checks["preflight"] = READY.model_copy(update={"ready": False, "problems": [problem]})

    with pytest.raises(InvalidRequest) as caught:
        service.enqueue(train("bad"))

    assert (caught.value.what, caught.value.cure) == ("Row 3 has no answer.", "Fix it.")
    assert names(service) == []


def test_all_problems_are_named(service: Service, engine: ScriptedRuntime) -> None:
    problems = [rs.Problem(what=what, cure="Fix it.") for what in ("One.", "Two.")]
    engine.checks["preflight"] = READY.model_copy(update={"ready": False, "problems": problems})

    with pytest.raises(InvalidRequest, match=r"One\. Fix it\. Two\. Fix it\."):
        service.enqueue(train("bad"))


def test_data_that_cannot_be_opened_is_refused_at_once(
    service: Service, engine: ScriptedRuntime
) -> None:
    engine.checks["preview-data"] = NotFound("There is no file 'x'.", cure="Check the path.")

    with pytest.raises(NotFound, match="There is no file 'x'"):
        service.enqueue(train("bad"))


def test_large_data_is_read_completely_first(service: Service, engine: ScriptedRuntime) -> None:
    engine.checks["preview-data"] = LOOK.model_copy(update={"quick": False})
    engine.checks["prepare-data"] = DataError("Row 90,000 is empty.")

    with pytest.raises(DataError, match="Row 90,000 is empty"):
        service.enqueue(train("large"))


def test_a_run_starts_where_its_data_is_as_it_was(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.enqueue(train("same"))

    until(lambda: trained(engine) == ["same"])
    assert names(service) == []


def test_a_run_whose_data_changed_waits_for_a_decision_and_lets_others_pass(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.start(train("first"))
    put_in(service, "changed")
    engine.checks["preflight"] = NOW
    service.queue.add(train("other"), FACTS, "local", NOW.mark)
    service.run_queue()
    fail(engine)

    until(lambda: trained(engine) == ["first", "other"])
    (left,) = service.snapshot().queue
    assert left.name == "changed"
    assert left.waits_for == "a decision about its data"
    assert left.question == CHANGED.replace("pirate ", "pirate.jsonl ")
    fail(engine)
    time.sleep(0.1)
    assert trained(engine) == ["first", "other"]


def test_a_question_outlives_the_app(
    service: Service, engine: ScriptedRuntime, scripted: Callable[[], Service]
) -> None:
    id = put_in(service, "changed")
    service.queue.note(id, mark=READY.mark, question=CHANGED)
    service.close()

    (left,) = scripted().snapshot().queue
    assert left.question == CHANGED


def test_a_confirmed_run_starts_with_the_data_as_it_is_now(
    service: Service, engine: ScriptedRuntime
) -> None:
    id = put_in(service, "changed")
    engine.checks["preflight"] = NOW
    service.run_queue()
    until(lambda: bool(service.snapshot().queue[0].question))

    service.confirm_queued(id)

    until(lambda: trained(engine) == ["changed"])
    assert names(service) == []


def test_a_run_is_not_confirmed_on_data_with_problems(
    service: Service, engine: ScriptedRuntime
) -> None:
    id = put_in(service, "changed")
    service.queue.note(id, mark=READY.mark, question=CHANGED)
    problem = rs.Problem(what="Row 3 has no answer.", cure="Fix it.")
    engine.checks["preflight"] = READY.model_copy(update={"ready": False, "problems": [problem]})

    with pytest.raises(InvalidRequest, match="Row 3 has no answer"):
        service.confirm_queued(id)

    (left,) = service.snapshot().queue
    assert left.question == CHANGED


def test_a_run_whose_data_is_gone_in_its_turn_waits_and_says_so(
    service: Service, engine: ScriptedRuntime
) -> None:
    put_in(service, "gone")
    gone = NotFound("The upload 'pirate.jsonl' is gone.", cure="Upload the file again.")
    engine.checks["preview-data"] = gone
    service.run_queue()

    until(lambda: bool(service.snapshot().queue[0].question))
    (left,) = service.snapshot().queue
    assert left.question == "The upload 'pirate.jsonl' is gone. Upload the file again."
    assert trained(engine) == []


def test_a_run_that_waits_no_more_cannot_be_confirmed(service: Service) -> None:
    with pytest.raises(NotFound, match="no longer waiting"):
        service.confirm_queued("nothing")


def test_a_run_of_an_earlier_version_waits_without_a_mark(
    service: Service, engine: ScriptedRuntime
) -> None:
    service.queue.add(train("older"), FACTS, "local")
    engine.checks["preflight"] = NOW
    service.run_queue()

    until(lambda: trained(engine) == ["older"])
