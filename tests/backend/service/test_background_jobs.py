"""Work beside the session: never Busy, shown while it runs, stopped by its own id."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.errors import Busy, InvalidRequest, NotFound, Stopped, Unsupported, WorkerDied
from backend.settings import STARTER
from tests.backend.conftest import FACTS, ScriptedRuntime
from tests.backend.service.test_service import add_adapter

BASE = FACTS.model_copy(update={"path": str(STARTER / "model")})


@pytest.fixture
def merging(service: Service, engine: ScriptedRuntime) -> Service:
    """A service with a base that has files, and one adapter for it."""
    engine.session(BASE, [])
    info = add_adapter(service, "pirate")
    config = service.library.folder(info.id) / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
    return service


def merge(folder: Path, **fields: Any) -> rq.Merge:
    return rq.Merge(**{"variant": [("pirate", 1.0)], "destination": str(folder), **fields})


def merged(folder: Path) -> rs.Merged:
    return rs.Merged(
        path=str(folder), bytes=1, files=1, precision="fp32", max_difference=0.0, verified="yes",
        notes=[], seconds=1.0, peak_memory_bytes=1,
    )  # fmt: skip


def test_a_merge_starts_while_a_training_runs_and_is_shown(
    merging: Service, engine: ScriptedRuntime, tmp_path: Path
) -> None:
    merging.start(rq.Train(name="polite"))

    job = merging.start(merge(tmp_path / "merged" / "m"))
    engine.tell("progress", text="Writing file 1 of 2", fraction=0.4, seconds_left=3.0)

    snapshot = merging.snapshot()
    assert snapshot.phase == "training"
    assert [(j.title, j.text, j.fraction) for j in snapshot.side_jobs] == [
        ("Merging pirate", "Writing file 1 of 2", 0.4)
    ]
    assert engine.sent[-1]["base"]["fingerprint"] == BASE.fingerprint
    engine.answer(merged(tmp_path / "merged" / "m"))
    assert job.result(timeout=0).path == str(tmp_path / "merged" / "m")
    assert merging.snapshot().side_jobs == ()


def test_the_model_stays_free_while_a_merge_runs(merging: Service, tmp_path: Path) -> None:
    merging.start(merge(tmp_path / "merged" / "m"))

    assert merging.snapshot().phase == "merging"
    assert not merging.start(rq.Score(texts=["x"], variants=[[]])).done()


def test_stop_side_stops_that_job_alone(
    merging: Service, engine: ScriptedRuntime, tmp_path: Path
) -> None:
    merging.start(rq.Train(name="polite"))
    job = merging.start(merge(tmp_path / "merged" / "m"))

    merging.stop_side(job.id)
    merging.stop_side(12345)

    controls = [message for message in engine.sent if "control" in message]
    assert controls == [{"control": "stop", "id": job.id}]
    assert merging.snapshot().side_jobs[0].stopping
    job_of_model = merging.snapshot().job
    assert job_of_model is not None
    assert not job_of_model.stopping


def test_two_merges_into_one_folder_are_refused(merging: Service, tmp_path: Path) -> None:
    merging.start(merge(tmp_path / "merged" / "m"))

    with pytest.raises(Busy, match="Merging pirate already writes to"):
        merging.start(merge(tmp_path / "merged" / "m"))
    merging.start(merge(tmp_path / "merged" / "other"))


def test_what_cannot_be_merged_is_refused_before_a_process_starts(
    merging: Service, engine: ScriptedRuntime, tmp_path: Path
) -> None:
    sent = len(engine.sent)
    (tmp_path / "merged" / "full").mkdir(parents=True)
    (tmp_path / "merged" / "full" / "x").write_text("x", encoding="utf-8")

    with pytest.raises(NotFound, match="no adapter called 'gone'"):
        merging.start(merge(tmp_path / "merged" / "m", variant=[("gone", 1.0)]))
    with pytest.raises(InvalidRequest, match="not an empty folder"):
        merging.start(merge(tmp_path / "merged" / "full"))

    assert len(engine.sent) == sent


def test_the_page_merges_into_its_own_folders_only_and_a_demo_not_at_all(
    merging: Service, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="may not use"):
        merging.start(merge(tmp_path.parent / "elsewhere"), caller="page")

    merging.settings = merging.settings.model_copy(update={"demo": True})
    with pytest.raises(Unsupported, match="does not write to folders"):
        merging.start(merge(tmp_path / "merged" / "m"), caller="page")


def test_what_a_merge_takes_is_known_from_headers(merging: Service, tmp_path: Path) -> None:
    wide = merging.merge_needs(merge(tmp_path / "merged" / "m", precision="fp32"))
    narrow = merging.merge_needs(
        merge(tmp_path / "merged" / "m", precision="bf16", shard_bytes=2_000_000)
    )

    weights = sum(file.stat().st_size for file in (STARTER / "model").glob("*.safetensors"))
    assert 2 * weights < wide.disk_bytes < 2 * weights + 5_000_000  # stored in bf16
    assert weights < narrow.disk_bytes < wide.disk_bytes
    assert (wide.precision, narrow.precision, wide.files) == ("fp32", "bf16", 1)
    assert narrow.files > 1


@pytest.mark.slow
def test_a_side_process_that_dies_or_is_stopped_fails_its_job_alone(tmp_path: Path) -> None:
    """The real processes: a killed one, a stopped one, and one that works beside a training."""
    with Service(Settings(workspace=tmp_path / "w")) as service:
        service.start(rq.LoadModel()).result(timeout=120)
        quick = {"data": "starter:pirate", "tokens_per_step": 128, "precision": "fp32"}
        service.start(rq.Train(**quick, name="pirate", max_steps=2)).result(timeout=120)
        target = tmp_path / "m"
        training = service.start(rq.Train(**quick, name="long", max_steps=100_000, epochs=1000))

        killed = service.start(merge(target))
        wait(lambda: service.engine.sides.runtimes[killed.id].memory_bytes() > 0)
        service.engine.sides.runtimes[killed.id].kill()
        with pytest.raises(WorkerDied, match="Nothing was written"):
            killed.result(timeout=60)
        stopped = service.start(merge(target))
        service.stop_side(stopped.id)
        with pytest.raises(Stopped):
            stopped.result(timeout=120)
        assert list(tmp_path.iterdir()) == [tmp_path / "w"]

        result = service.start(merge(target)).result(timeout=120)

        assert result.max_difference < 1e-5
        assert not training.done()
        service.stop()
        assert training.result(timeout=60).state == "stopped"
        expected = score(service, [("pirate", 1.0)])
        service.start(rq.LoadModel(source=str(target))).result(timeout=120)
        assert score(service, []) == pytest.approx(expected, rel=1e-5)
        run = service.start(rq.Train(**quick, name="on merged", max_steps=2)).result(timeout=120)
        assert run.state == "finished"


def score(service: Service, variant: rq.Variant) -> float:
    job = service.start(rq.Score(texts=["Where is the cat?"], variants=[variant]))
    return float(job.result(timeout=60).scores[0][0])


def wait(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.02)
