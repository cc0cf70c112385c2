"""Death of the engine and the way back: the recipe, what the person is told, and a full disk."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.errors import NotFound, Stopped, WorkerDied
from backend.workspace.session_recipe import Recipe
from tests.backend.conftest import FACTS, ScriptedRuntime

Make = Callable[[], Service]
Engines = list[ScriptedRuntime]
HELLO = rq.Chat(messages=[rq.Message(role="user", content="Hello")])


def test_the_session_comes_back_from_its_recipe(
    service: Service, engine: ScriptedRuntime, engines: Engines
) -> None:
    job = service.start(rq.SetActive(adapters=[("pirate", 0.5)]))
    engine.session(FACTS, [("pirate", 0.5)])
    engine.answer(rs.ActiveSet(adapters=[("pirate", 0.5)], seconds=0.1))
    job.result(timeout=0)

    engine.on_exit("it was killed")

    down = service.snapshot()
    assert (down.phase, down.base, down.active) == ("loading", None, [])
    assert down.notice is not None
    assert down.notice.kind == "bad"
    assert down.notice.text == (
        "The model process ended: it was killed. The session is being restored."
    )
    engines[1].session(FACTS, [])
    engines[1].answer(FACTS)
    assert engines[1].sent[-1]["request"] == {"adapters": [["pirate", 0.5]]}
    assert service.snapshot().phase == "loading"
    engines[1].session(FACTS, [("pirate", 0.5)])
    engines[1].answer(rs.ActiveSet(adapters=[("pirate", 0.5)], seconds=0.1))
    back = service.snapshot()
    assert (back.phase, back.base, back.active) == ("ready", FACTS, [("pirate", 0.5)])


def with_pirate_on(service: Service, engine: ScriptedRuntime) -> None:
    service.start(rq.SetActive(adapters=[("pirate", 1.0)]))
    engine.session(FACTS, [("pirate", 1.0)])
    engine.answer(rs.ActiveSet(adapters=[("pirate", 1.0)], seconds=0.1))


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> Engines:
    """The second processes that are started beside the engine, and those that only read."""
    started: Engines = []

    def start(settings: Settings, on_message: Any, on_exit: Any, **kwargs: Any) -> ScriptedRuntime:
        started.append(ScriptedRuntime(on_message, on_exit))
        started[-1].options = {"streams": False, **kwargs}
        return started[-1]

    monkeypatch.setattr("backend.service.background_jobs.start_beside", start)
    monkeypatch.setattr("backend.service.background_jobs.start_reading", start)
    return started


@pytest.fixture
def in_processes(engines: Engines, sides: Engines, tmp_path: Path) -> Iterator[Service]:
    """A service that would use processes, with a base loaded."""
    with Service(Settings(workspace=tmp_path / "p", runtime="process")) as service:
        service.start(rq.LoadModel(source="starter"))
        engines[0].session(FACTS, [])
        engines[0].answer(FACTS)
        yield service


def test_a_merge_alone_gets_large_pages(in_processes: Service, sides: Engines) -> None:
    in_processes.start(rq.Train(name="pirate"))
    in_processes.start(rq.PreviewData(data="starter:pirate"))
    in_processes.engine.sides.begin(rq.Merge(variant=[("pirate", 1.0)], destination="merged"))
    assert [side.options["streams"] for side in sides] == [False, True]


def test_a_failure_beside_the_rebuilding_does_not_cut_it_short(
    in_processes: Service, engines: Engines, sides: Engines
) -> None:
    with_pirate_on(in_processes, engines[0])
    engines[0].on_exit("it was killed")
    look = in_processes.start(rq.PreviewData(data="starter:nothing"))
    sides[0].tell("error", error=NotFound("There is no such data set.").to_dict())
    with pytest.raises(NotFound):
        look.result(timeout=0)

    engines[1].session(FACTS, [])
    engines[1].answer(FACTS)

    assert engines[1].operations == ["load-model", "set-active"]


def test_a_job_beside_survives_the_worker_dying_while_its_process_starts(
    in_processes: Service, engines: Engines, sides: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_processes.start(rq.Train(name="pirate"))

    def start(settings: Settings, on_message: Any, on_exit: Any, **kwargs: Any) -> ScriptedRuntime:
        engines[0].on_exit("it was killed")
        sides.append(ScriptedRuntime(on_message, on_exit))
        return sides[-1]

    monkeypatch.setattr("backend.service.background_jobs.start_beside", start)
    look = in_processes.start(rq.PrepareData(data="starter:pirate"))

    assert not look.done()
    prepared = rs.PreparedData(rows=1, bad=0, tokens=1, seconds=0.1)
    sides[0].answer(prepared)
    assert look.result(timeout=0) == prepared


def test_a_process_that_starts_while_the_workbench_closes_is_ended(
    in_processes: Service, sides: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_processes.start(rq.Train(name="pirate"))

    def start(settings: Settings, on_message: Any, on_exit: Any, **kwargs: Any) -> ScriptedRuntime:
        in_processes.close()
        sides.append(ScriptedRuntime(on_message, on_exit))
        return sides[-1]

    monkeypatch.setattr("backend.service.background_jobs.start_beside", start)
    look = in_processes.start(rq.PrepareData(data="starter:pirate"))

    with pytest.raises(Stopped):
        look.result(timeout=0)
    assert sides[0].closed
    assert sides[0].sent == []


def test_adapters_that_do_not_come_back_are_told(
    service: Service, engine: ScriptedRuntime, engines: Engines
) -> None:
    with_pirate_on(service, engine)
    engine.on_exit("it was killed")
    engines[1].session(FACTS, [])
    engines[1].answer(FACTS)
    engines[1].tell("error", error=NotFound("There is no adapter called 'pirate'.").to_dict())

    notice = service.snapshot().notice
    assert notice is not None
    assert notice.text == (
        "The base is restored, but its adapters are not active: "
        "There is no adapter called 'pirate'."
    )


def test_the_job_that_died_says_what_happened_and_what_to_do(
    service: Service, engine: ScriptedRuntime
) -> None:
    job = service.start(rq.Train(name="pirate"))
    assert job.run_id is not None
    run = service.runs.get(job.run_id)
    (run.checkpoints / "checkpoint-20").mkdir()

    engine.on_exit("it was killed")

    with pytest.raises(WorkerDied) as caught:
        job.result(timeout=0)
    assert str(caught.value) == (
        "Training pirate was interrupted. The model process ended: it was killed. "
        "Resume continues from step 20. The session is restored automatically."
    )
    summary = service.snapshot().runs[0]
    assert (summary.state, summary.resumable) == ("interrupted", True)


def test_a_chat_that_dies_raises_after_its_pieces(
    service: Service, engine: ScriptedRuntime
) -> None:
    pieces = service.chat(HELLO)
    engine.tell("piece", text="Good ")
    engine.on_exit("it crashed (SIGSEGV)")

    assert next(pieces) == "Good "
    with pytest.raises(WorkerDied, match=r"during 'Answering': it crashed \(SIGSEGV\)"):
        next(pieces)


def test_a_recipe_that_kills_the_engine_is_given_up_and_that_is_said(
    service: Service, engine: ScriptedRuntime, engines: Engines
) -> None:
    engine.on_exit("it was killed")
    engines[1].on_exit("it was killed")

    assert len(engines) == 2
    snapshot = service.snapshot()
    assert (snapshot.phase, snapshot.base, snapshot.job) == ("down", None, None)
    assert snapshot.notice is not None
    assert snapshot.notice.text == (
        "The model process ended during 'Loading starter': it was killed. "
        "It ended while the session was being restored, so that was cancelled. Load a base."
    )
    job = service.start(rq.LoadModel(source="starter"))
    engines[2].session(FACTS, [])
    engines[2].answer(FACTS)
    assert job.result(timeout=0) == FACTS
    assert service.snapshot().phase == "ready"


def test_a_first_load_that_kills_the_engine_has_nothing_to_rebuild(
    scripted: Make, engines: Engines
) -> None:
    service = scripted()
    job = service.start(rq.LoadModel(source="someone/huge"))

    engines[0].on_exit("it was killed")

    with pytest.raises(WorkerDied) as caught:
        job.result(timeout=0)
    assert str(caught.value) == (
        "The model process ended during 'Loading someone/huge': it was killed."
    )
    assert len(engines) == 1


def test_a_base_that_cannot_be_loaded_is_not_in_the_recipe(
    service: Service, engine: ScriptedRuntime, engines: Engines
) -> None:
    service.start(rq.LoadModel(source="someone/missing"))
    engine.tell("error", error=NotFound("There is no such model.").to_dict())

    engine.on_exit("it was killed")

    assert engines[1].sent[-1]["request"]["source"] == "starter"


def test_the_recipe_outlives_the_service(
    service: Service, engine: ScriptedRuntime, scripted: Make, engines: Engines
) -> None:
    service.start(rq.SetActive(adapters=[("pirate", 1.0)]))
    engine.session(FACTS, [("pirate", 1.0)])
    engine.answer(rs.ActiveSet(adapters=[("pirate", 1.0)], seconds=0.1))
    service.close()

    scripted().restore()
    engines[1].session(FACTS, [])
    engines[1].answer(FACTS)

    assert [message["request"] for message in engines[1].sent] == [
        rq.LoadModel(source="starter").model_dump(mode="json"),
        {"adapters": [["pirate", 1.0]]},
    ]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"base": 5}'])
def test_without_a_readable_recipe_the_starter_is_loaded(
    scripted: Make, engines: Engines, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "session.json").write_bytes(content)
    service = scripted()

    job = service.restore()

    assert job is not None
    assert engines[0].sent[-1]["request"]["source"] == "starter"


def test_unloading_empties_the_recipe(
    service: Service, engine: ScriptedRuntime, tmp_path: Path
) -> None:
    service.start(rq.UnloadModel())
    engine.session(None, [])
    engine.answer(rs.Unloaded(freed_bytes=1))

    assert Recipe.load(tmp_path / "session.json") == Recipe()
    assert service.snapshot().phase == "empty"


def test_a_full_disk_loses_no_result(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.start(rq.SetActive(adapters=[("pirate", 1.0)]))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    engine.session(FACTS, [("pirate", 1.0)])
    engine.answer(rs.ActiveSet(adapters=[("pirate", 1.0)], seconds=0.1))
    monkeypatch.undo()

    assert job.result(timeout=0).adapters == [("pirate", 1.0)]
    notice = service.snapshot().notice
    assert notice is not None
    assert "Could not write session.json: No space left on device." in notice.text


def test_a_run_that_cannot_be_written_still_ends_when_the_engine_dies(
    service: Service, engine: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.start(rq.Train(name="pirate"))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    engine.on_exit("it was killed")
    monkeypatch.undo()

    with pytest.raises(WorkerDied, match="Training pirate was interrupted"):
        job.result(timeout=0)


def test_closing_ends_the_engine_and_what_it_does(
    service: Service, engine: ScriptedRuntime
) -> None:
    job = service.start(rq.Score(texts=["x"], variants=[[]]))

    service.close()

    assert engine.closed
    with pytest.raises(Stopped, match="The workbench was closed"):
        job.result(timeout=0)
    with pytest.raises(Stopped, match="The workbench is closed"):
        service.start(rq.LoadModel(source="starter"))


def test_closing_asks_a_training_to_save_first(service: Service, engine: ScriptedRuntime) -> None:
    service.start(rq.Train(name="pirate"))

    service.close()

    assert engine.words == ["stop"]
    assert engine.closed
