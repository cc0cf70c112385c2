"""Runs on a base whose packed examples would influence each other: in rows, or one by one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from backend.engine.models.loading import Base
from backend.engine.steps import isolation
from backend.errors import VerificationFailed
from backend.results import PreflightReport, RunResult
from backend.runs.run_records import status_from_events
from tests.architectures.tiny_models import write_model
from tests.engine.export.test_run_export import export, losses_of_run, losses_of_script
from tests.engine.starter_runs import assert_same_bits, stop_after
from tests.engine.tiny import start_service

QUICK: dict[str, Any] = {"data": "starter:pirate", "tokens_per_step": 256, "precision": "fp32"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a tiny BLOOM, which uses ALiBi."""
    root = tmp_path_factory.mktemp("rows")
    opened = start_service(root / "workspace", write_model(root / "bloom", "bloom"))
    with opened:
        yield opened


def request(name: str, **fields: Any) -> rq.Train:
    return rq.Train(**{**QUICK, "name": name, "max_steps": 6, **fields})


def train(service: Service, name: str, **fields: Any) -> RunResult:
    result: RunResult = service.start(request(name, **fields)).result(timeout=120)
    return result


def preflight(service: Service, train: rq.Train, **fields: Any) -> PreflightReport:
    report: PreflightReport = service.start(rq.Preflight(train=train, **fields)).result(timeout=60)
    return report


def base_of(service: Service) -> Base:
    base: Base = service.engine._runtime._engine.session.base  # type: ignore[union-attr]
    return base


def texts(service: Service, run_id: str) -> list[str]:
    return [event.text for event in service.events(run_id) if event.text]


def test_preflight_says_what_training_does(service: Service) -> None:
    wanted = request("said", max_steps=None, epochs=0.5)

    report = preflight(service, wanted, measure=False)
    run = service.start(wanted).result(timeout=120)

    assert report.ready
    assert (report.layout, report.steps) == (run.layout, run.total_steps) == ("rows", run.steps)
    assert 0 < report.padding_share < 0.5
    said = [note for note in report.notes if "row of its own" in note]
    assert said == [text for text in texts(service, run.run_id) if "row of its own" in text]
    assert "would influence each other" in said[0]
    assert "of the computed positions are padding" in said[0]


def test_the_layout_is_recorded_and_survives_a_lost_status(service: Service) -> None:
    run = train(service, "recorded")

    found = next(each for each in service.snapshot().runs if each.id == run.run_id)
    folder = service.settings.runs_dir / run.run_id

    assert found.layout == "rows"
    assert "row of its own" in found.layout_note
    assert status_from_events(folder / "events.jsonl").layout == "rows"


def test_a_resumed_run_in_rows_ends_with_the_same_bits(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"adapter": rq.Lora(dropout=0.2), "accumulation": 2, "max_steps": 8}
    whole = train(service, "whole", **fields)

    with monkeypatch.context() as patch:
        stop_after(service, patch, step=3)
        stopped = train(service, "halved", **fields)
    resumed = service.start(rq.Resume(run_id=stopped.run_id)).result(timeout=120)

    assert (stopped.state, stopped.steps, resumed.steps) == ("stopped", 3, 8)
    assert resumed.layout == "rows"
    assert_same_bits(whole, resumed)


def test_an_extended_run_keeps_its_layout(service: Service) -> None:
    run = train(service, "extended", max_steps=None, epochs=0.25)

    longer = service.start(rq.Resume(run_id=run.run_id, extra_epochs=0.25)).result(timeout=120)

    assert longer.layout == "rows"
    assert longer.steps > run.steps


@pytest.mark.parametrize("layout", ["rows", "single"])
def test_the_plain_script_repeats_every_loss(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    if layout == "single":
        require(monkeypatch, "single")
    run = train(service, f"again-{layout}", accumulation=2, adapter=rq.Lora(rank=2, dropout=0.1))
    export(service, run.run_id, tmp_path / "out")

    losses = losses_of_script(tmp_path / "out", tmp_path / "elsewhere")

    assert run.layout == layout
    assert losses == pytest.approx(losses_of_run(service, run.run_id), rel=1e-5)


def test_a_run_whose_rows_are_not_proven_goes_on_one_by_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_rows = train(service, "in-rows", accumulation=2)
    require(monkeypatch, "single")

    alone = train(service, "one-by-one", accumulation=2)

    assert alone.layout == "single"
    assert [text for text in texts(service, alone.run_id) if "computed alone" in text]
    assert alone.evaluation_before.loss == pytest.approx(in_rows.evaluation_before.loss, rel=1e-5)
    assert alone.evaluation_before.examples == in_rows.evaluation_before.examples


def test_a_resumed_run_that_is_not_proven_any_more_keeps_its_packs(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(service, "undisturbed")
    with monkeypatch.context() as patch:
        stop_after(service, patch, step=3)
        stopped = train(service, "disturbed")
    require(monkeypatch, "single")

    resumed = service.start(rq.Resume(run_id=stopped.run_id)).result(timeout=120)

    assert resumed.steps == whole.steps
    losses = losses_of_run(service, resumed.run_id), losses_of_run(service, whole.run_id)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_base_taken_for_packed_falls_back_when_the_run_starts(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(service)
    wrong = base.facts.model_copy(update={"layout": "packed", "layout_reason": ""})
    monkeypatch.setattr(base, "facts", wrong)

    run = train(service, "taken-for-packed")

    assert run.layout == "rows"
    assert run.steps == 6


@pytest.mark.slow
def test_two_processes_train_rows_as_one_does(service: Service) -> None:
    fields: dict[str, Any] = {"accumulation": 2, "max_steps": 4}
    alone = train(service, "one-process", **fields)
    shared = service.prepare_launch(request("two-processes", processes=2, **fields)).run_id

    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    folder = str(service.settings.runs_dir / shared)
    done = subprocess.run(
        [*launcher, "-m", "backend.engine", "run", folder],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert service.runs.get(shared).status().layout == "rows"
    expected = losses_of_run(service, alone.run_id)
    assert losses_of_run(service, shared) == pytest.approx(expected, rel=1e-5)


def test_checkpointing_is_left_off_where_it_is_not_supported(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(base_of(service).model), "supports_gradient_checkpointing", False)
    wanted = request("unsupported", gradient_checkpointing=True)

    report = preflight(service, wanted, measure=False)
    run = service.start(wanted).result(timeout=120)

    assert report.ready
    assert any("Gradient checkpointing stays off" in note for note in report.notes)
    assert run.state == "finished"


def test_a_base_that_cannot_be_trained_is_not_ready(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(service)
    blocked = base.facts.model_copy(update={"training_blocker": "Its score is nan."})
    monkeypatch.setattr(base, "facts", blocked)

    report = preflight(service, request("blocked"), measure=False)

    assert not report.ready
    assert "cannot be trained. Its score is nan" in report.problems[0].what


def require(monkeypatch: pytest.MonkeyPatch, least: str) -> None:
    """Let every layout before `least` fail its proof."""
    original = isolation.require_isolation

    def refuse(base: Any, model: Any, precision: str, layout: str = "packed") -> None:
        if layout != least:
            raise VerificationFailed("Examples influence each other in this model.")
        original(base, model, precision, layout)

    monkeypatch.setattr(isolation, "require_isolation", refuse)
