"""Runs that are stopped: what they keep, and that going on ends with the same bits."""

from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from backend.engine.adapters import saving
from backend.errors import DiskFull, InvalidRequest
from backend.results import RunResult
from tests.engine.starter_runs import QUICK, assert_same_bits, scores, stop_after, train


def test_a_resumed_run_ends_with_the_same_bits(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {
        "adapter": rq.Lora(rank=4, dropout=0.1),
        "max_steps": 12,
        "accumulation": 2,
        "save_every": 5,
    }
    whole = train(base_only, "uninterrupted", **fields)
    stop_after(base_only, monkeypatch, step=7)

    job = base_only.start(rq.Train(**{**QUICK, "name": "interrupted", **fields}))
    stopped = job.result(timeout=300)
    monkeypatch.undo()
    resumed = base_only.start(rq.Resume(run_id=stopped.run_id)).result(timeout=300)

    assert (stopped.state, stopped.steps) == ("stopped", 7)
    assert (resumed.state, resumed.steps) == ("finished", 12)
    assert_same_bits(whole, resumed)
    assert base_only.curve(stopped.run_id).step == list(range(1, 13))


def broken_off_while_publishing(service: Service, name: str, **fields: Any) -> RunResult:
    """Train a run whose adapter cannot be saved at its end, and resume it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "publish", lambda *_: _raise(DiskFull("There is no room.")))
        job = service.start(rq.Train(**{**QUICK, "name": name, **fields}))
        with pytest.raises(DiskFull):
            job.result(timeout=300)
    assert job.run_id is not None
    result: RunResult = service.start(rq.Resume(run_id=job.run_id)).result(timeout=300)
    return result


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("name", "fields"),
    [("tested", {}), ("untested", {"eval_share": 0.0}), ("the best", {"keep_best": True})],
)
def test_a_run_that_broke_off_after_its_last_step_trains_no_further(
    base_only: Service, name: str, fields: dict[str, Any]
) -> None:
    fields = {**fields, "max_steps": 6, "save_every": 3}
    whole = train(base_only, f"{name} and whole", **fields)

    resumed = broken_off_while_publishing(base_only, f"{name} and broken off", **fields)

    assert (resumed.state, resumed.steps) == ("finished", 6)
    assert_same_bits(whole, resumed)
    assert (resumed.evaluation, resumed.adapter_step) == (whole.evaluation, whole.adapter_step)
    expected, curve = base_only.curve(whole.run_id), base_only.curve(resumed.run_id)
    assert (curve.step, curve.eval_step) == (expected.step, expected.eval_step)


def test_a_stopped_run_says_so_and_keeps_its_adapter(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(base_only, monkeypatch, step=3)

    run = train(base_only, "stopped early", max_steps=10)

    summary = next(r for r in base_only.snapshot().runs if r.id == run.run_id)
    assert summary.state == "stopped"
    assert summary.message == "Stopped after step 3 of 10; everything is saved."
    assert summary.resumable
    assert scores(base_only, [("stopped early", 1.0)]) != scores(base_only, [])


def test_a_resumed_runs_own_adapter_is_on_again_afterwards(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(base_only, patch, step=2)
        run = train(base_only, "half", max_steps=4)
    base_only.start(rq.SetActive(adapters=[("half", 0.5)])).result(timeout=60)

    base_only.start(rq.Resume(run_id=run.run_id)).result(timeout=300)

    assert base_only.snapshot().active == [("half", 0.5)]
    base_only.start(rq.SetActive(adapters=[])).result(timeout=60)


def test_undoing_a_deletion_keeps_a_stopped_runs_name(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(base_only, patch, step=1)
        run = train(base_only, "back again", max_steps=3)
    base_only.start(rq.DeleteAdapter(name="back again")).result(timeout=60)
    restored = base_only.start(rq.RestoreAdapter(name="back again")).result(timeout=60)
    assert restored.adapter.name == "back again"

    base_only.start(rq.DeleteAdapter(name="back again")).result(timeout=60)
    base_only.start(rq.Resume(run_id=run.run_id)).result(timeout=300)
    with pytest.raises(InvalidRequest, match="its run continued after it was deleted"):
        base_only.start(rq.RestoreAdapter(name="back again")).result(timeout=60)
