"""Damaged files: a queue, session or adapter is named, kept and never overwritten."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from backend import results as rs
from backend.compile_times import CompileTimes
from backend.errors import Damaged, NotFound
from backend.files import damaged_files
from backend.library import SIDECAR, new_adapter_id
from backend.runs.training_queue import TrainingQueue
from tests.backend.conftest import FACTS, ScriptedRuntime
from tests.backend.damaging import (
    WAYS,
    Way,
    a_dangling_link,
    a_folder,
    content_of,
    cut_off,
    empty,
    not_utf8,
    zeros,
)

Make = Callable[[], Service]
Engines = list[ScriptedRuntime]


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def damaged(request: pytest.FixtureRequest) -> Way:
    """A way in which a file can be damaged."""
    way: Way = request.param
    return way


# -- queue ---------------------------------------------------------------------------------------


def test_a_damaged_queue_is_told_and_kept_before_a_new_one_is_written(
    tmp_path: Path, damaged: Way
) -> None:
    file = tmp_path / "queue.json"
    TrainingQueue(file).add(rq.Train(name="lost"), FACTS, "local")
    damaged(file)
    before = content_of(file)

    queue = TrainingQueue(file)
    assert "queue.json" in queue.problem
    assert content_of(file) == before

    queue.add(rq.Train(name="next"), FACTS, "local")
    (aside,) = tmp_path.glob("queue.json.damaged-*")
    assert content_of(aside) == before
    assert TrainingQueue(file).names() == {"next"}
    assert TrainingQueue(file).problem == ""


def test_of_a_damaged_queue_what_can_be_read_goes_on_waiting(tmp_path: Path) -> None:
    file = tmp_path / "queue.json"
    queue = TrainingQueue(file)
    for name in ("first", "second"):
        queue.add(rq.Train(name=name), FACTS, "local")
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{"id": "x"}, entries[1]]))

    again = TrainingQueue(file)

    assert again.names() == {"second"}
    assert again.problem.startswith(
        "Some waiting runs may be lost: 1 of 2 entries of queue.json cannot be read."
    )


def test_the_app_says_that_its_queue_is_damaged(tmp_path: Path, scripted: Make) -> None:
    empty(tmp_path / "queue.json")
    service = scripted()

    notice = service.snapshot().notice
    assert notice is not None
    assert notice.kind == "bad"
    assert notice.text.endswith(service.queue.problem)
    assert service.opening[-1] == service.queue.problem


# -- session -------------------------------------------------------------------------------------


def test_a_damaged_session_is_kept_aside_and_told(
    tmp_path: Path, scripted: Make, engines: Engines, damaged: Way
) -> None:
    file = tmp_path / "session.json"
    service = scripted()
    damaged(file)
    before = content_of(file)

    service.restore()

    assert engines[0].sent[-1]["request"]["source"] == "starter"
    notice = service.snapshot().notice
    assert notice is not None
    assert notice.text.startswith("session.json ")
    assert notice.text.endswith("so the starter model is loaded.")
    (aside,) = tmp_path.glob("session.json.damaged-*")
    assert content_of(aside) == before


# -- what was measured ---------------------------------------------------------------------------


def test_damaged_measurements_are_kept_aside_and_measured_anew(
    tmp_path: Path, damaged: Way
) -> None:
    file = tmp_path / "compile_times.json"
    times = CompileTimes(file)
    times.note(4, 1000.0)
    usual = CompileTimes(tmp_path / "other.json").expected(4)
    damaged(file)
    before = content_of(file)

    assert times.expected(4) == usual
    times.note(4, 500.0)

    assert times.expected(4) == pytest.approx(500.0)
    (aside,) = tmp_path.glob("compile_times.json.damaged-*")
    assert content_of(aside) == before


# -- launches ------------------------------------------------------------------------------------


def test_a_damaged_launch_is_named_and_can_be_discarded(service: Service, damaged: Way) -> None:
    launch = service.prepare_launch(rq.Train(name="far", processes=2, accumulation=2))
    damaged(service.runs.get(launch.run_id).folder / "launch.json")

    with pytest.raises(Damaged, match=r"launch\.json"):
        service.launch_of(launch.run_id)
    service.discard(launch.run_id)
    assert service.snapshot().runs == []


# -- adapters ------------------------------------------------------------------------------------


def add_adapter(service: Service, name: str) -> rs.AdapterInfo:
    info = rs.AdapterInfo(
        id=new_adapter_id(), name=name, colour="#E69F00", method="LoRA", rank=8, parameters=1,
        base_name="starter", base_fingerprint=FACTS.fingerprint, created=0.0,
    )  # fmt: skip
    with service.library.receive(info) as folder:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).write_text("{}", encoding="utf-8")
    return info


def test_an_adapter_whose_side_car_is_damaged_is_listed_and_can_be_deleted(
    service: Service, damaged: Way
) -> None:
    info, good = add_adapter(service, "pirate"), add_adapter(service, "good")
    file = service.library.folder(info.id) / SIDECAR
    before = service.snapshot().version
    damaged(file)
    content = content_of(file)

    snapshot = service.snapshot()

    assert snapshot.version > before
    assert [adapter.id for adapter in snapshot.adapters] == [good.id]
    (found,) = snapshot.damaged
    assert (found.id, found.folder) == (info.id, str(file.parent))
    assert found.what.startswith(f"{SIDECAR} ")
    assert found.cure == "Add it again from its folder, then delete it here."
    assert content_of(file) == content

    service.delete_damaged(info.id)
    assert service.snapshot().damaged == ()
    with pytest.raises(NotFound):
        service.delete_damaged(good.id)


def test_what_cannot_be_read_in_the_trash_goes_when_the_app_closes(
    service: Service, scripted: Make
) -> None:
    info = add_adapter(service, "pirate")
    empty(service.library.folder(info.id) / SIDECAR)
    service.delete_damaged(info.id)
    trash = service.library.root / ".trash"
    assert [each.name for each in trash.iterdir()] == [info.id]

    service.close()

    assert list(trash.iterdir()) == []


# -- reading itself ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (empty, "is damaged: it is empty."),
        (zeros, "is damaged: it is empty."),
        (cut_off, "is damaged: it is cut off or is not JSON."),
        (not_utf8, "is damaged: it is not text."),
        (a_folder, "cannot be read: Is a directory."),
        (a_dangling_link, "cannot be read: it is not there."),
    ],
)
def test_the_reason_is_said_in_words(tmp_path: Path, way: Way, reason: str) -> None:
    file = tmp_path / "facts.json"
    way(file)

    with pytest.raises(Damaged) as caught:
        damaged_files.read_if_there(file, json.loads, missing={})

    assert caught.value.what == f"facts.json {reason}"


def test_files_kept_aside_in_one_second_do_not_replace_each_other(tmp_path: Path) -> None:
    kept: set[Path] = set()
    for number in range(3):
        (tmp_path / "queue.json").write_text(str(number), encoding="utf-8")
        kept.add(damaged_files.keep_aside(tmp_path / "queue.json"))

    assert sorted(path.read_text() for path in kept) == ["0", "1", "2"]
