"""The disk that a run needs, as predicted before it starts and as found afterwards."""

from pathlib import Path

import pytest

from backend import Service
from backend import requests as rq
from backend.engine.planning import disk_space


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_predicted_disk_is_enough_and_not_far_off(base_only: Service) -> None:
    train = rq.Train(
        name=base_only.free_name("disk"), max_steps=12, tokens_per_step=128, save_every=3,
        precision="fp32", adapter=rq.Lora(rank=32),
    )  # fmt: skip
    report = base_only.start(rq.Preflight(train=train, measure=False)).result(timeout=120)
    run = base_only.start(train).result(timeout=300)

    found = size(base_only.runs.get(run.run_id).folder) + size(Path(run.adapter_path))
    one_more = size(base_only.runs.get(run.run_id).latest_checkpoint() or Path())

    assert report.ready
    assert found + one_more == pytest.approx(report.disk_bytes, rel=0.1)
    assert found + one_more <= report.disk_bytes


def test_settings_that_differ_from_the_defaults_are_counted(base_only: Service) -> None:
    train = rq.Train(name="counted", data="starter:polite", seed=7, adapter=rq.Lora(rank=4))

    report = base_only.start(rq.Preflight(train=train, measure=False)).result(timeout=120)

    assert report.changed_settings == 2


def test_a_run_that_does_not_fit_on_the_disk_is_not_ready(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space, "free", lambda folder: 1024**2)
    train = rq.Train(name="too much", adapter=rq.Lora(rank=16))

    report = base_only.start(rq.Preflight(train=train, measure=False)).result(timeout=120)

    assert not report.ready
    (problem,) = report.problems
    assert problem.what.startswith("The run needs about ")
    assert problem.what.endswith(" of disk space, but only 1 MB are free.")
    assert problem.cure == "Free some disk space, or choose another workspace."
