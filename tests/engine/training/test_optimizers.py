"""The optimiser of a run: fused AdamW, or AdamW in 8 bits where the device has it.

bitsandbytes 0.50 computes it on a processor, too; tensors of fewer than 4,096 numbers stay in fp32.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import GlobalOptimManager

from backend import Service
from backend import requests as rq
from backend.engine.models.model_size import Shape
from backend.engine.planning import run_checks
from backend.engine.training import memory_estimate, trainer_arguments
from backend.settings import STARTER
from tests.engine.export.test_run_export import export, losses_of_run, losses_of_script
from tests.engine.starter_runs import assert_same_bits, stop_after, train

FIELDS: dict[str, Any] = {
    "adapter": rq.Lora(rank=64, dropout=0.1, targets=["up_proj", "down_proj"]),
    "max_steps": 12,
    "learning_rate": 1e-3,
}
IN_8BIT: dict[str, Any] = {**FIELDS, "optimizer": "adamw_8bit"}
EIGHT_BIT = rq.Train(name="a", data="starter:pirate", optimizer="adamw_8bit")


def moments(service: Service, run_id: str) -> list[torch.Tensor]:
    """Return the first moment of each parameter, as a run's last checkpoint keeps it."""
    folder = service.runs.get(run_id).latest_checkpoint()
    assert folder is not None
    found = torch.load(folder / "optimizer.pt", weights_only=True)["state"].values()
    return [each["__bnb_optimizer_quant_state__"]["state1"] for each in found]


def test_a_resumed_run_in_8_bits_ends_with_the_same_bits(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(base_only, "whole in 8 bits", **IN_8BIT)
    with monkeypatch.context() as patch:
        stop_after(base_only, patch, step=7)
        stopped = train(base_only, "stopped in 8 bits", **IN_8BIT)
    assert {each.dtype for each in moments(base_only, stopped.run_id)} == {torch.uint8}

    resumed = base_only.start(rq.Resume(run_id=stopped.run_id)).result(timeout=300)

    assert (stopped.steps, resumed.steps) == (7, 12)
    assert_same_bits(whole, resumed)


def test_8_bits_learn_nearly_the_same(base_only: Service) -> None:
    exact = train(base_only, "in 32 bits", **FIELDS)
    coarse = train(base_only, "in 8 bits", **IN_8BIT)

    fell = exact.first_loss - exact.final_loss
    assert fell > 0.1
    assert abs(coarse.final_loss - exact.final_loss) < 0.1 * fell
    assert coarse.final_loss != exact.final_loss


def test_the_plain_script_repeats_a_run_in_8_bits(base_only: Service, tmp_path: Path) -> None:
    run = train(base_only, base_only.free_name("scripted"), **IN_8BIT)
    export(base_only, run.run_id, tmp_path / "out")

    losses = losses_of_script(tmp_path / "out", tmp_path / "elsewhere")

    assert losses == pytest.approx(losses_of_run(base_only, run.run_id), rel=1e-4)


def test_the_fused_optimiser_equals_the_plain_one(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = train(base_only, "fused", **FIELDS, weight_decay=0.1)
    monkeypatch.setitem(trainer_arguments.OPTIMIZERS, "adamw", "adamw_torch")
    plain = train(base_only, "not fused", **FIELDS, weight_decay=0.1)

    found, expected = (losses_of_run(base_only, each.run_id) for each in (fused, plain))
    assert found == pytest.approx(expected, rel=1e-5)


def test_no_base_stays_in_memory_after_a_run_in_8_bits(base_only: Service) -> None:
    train(base_only, "forgotten", **{**IN_8BIT, "max_steps": 1})

    assert GlobalOptimManager.get_instance().module_weight_config_triple == []


@pytest.mark.parametrize(("kind", "named"), [("mps", "Apple GPU"), ("xpu", "Intel GPU")])
def test_a_device_without_8_bits_is_refused(kind: str, named: str) -> None:
    (problem,) = run_checks.about_optimizer(EIGHT_BIT, torch.device(kind))

    assert problem.what == f"bitsandbytes has no 8-bit optimiser for the {named} here."
    assert "adamw" in problem.cure
    assert not [*run_checks.about_optimizer(EIGHT_BIT, torch.device("cpu"))]
    plain = EIGHT_BIT.model_copy(update={"optimizer": "adamw"})
    assert not [*run_checks.about_optimizer(plain, torch.device(kind))]


def test_a_run_that_the_device_cannot_do_is_refused_before_it_starts(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(train: rq.Train, device: torch.device) -> Any:
        return refused(train, torch.device("mps"))

    refused = run_checks.about_optimizer
    monkeypatch.setattr(run_checks, "about_optimizer", without)
    report = base_only.start(rq.Preflight(train=EIGHT_BIT, measure=False)).result(timeout=60)

    assert not report.ready
    assert any("8-bit optimiser" in each.what for each in report.problems)


def test_8_bits_take_a_quarter_of_the_memory() -> None:
    shape = Shape.from_config(STARTER / "model" / "config.json")
    setup = memory_estimate.Setup(trainable=10**6)
    exact = dict(memory_estimate.estimate(shape, setup).parts)
    coarse = dict(memory_estimate.estimate(shape, replace(setup, optimizer="adamw_8bit")).parts)

    assert exact["optimiser"] == 8_000_000
    assert coarse["optimiser"] == pytest.approx(2_000_000, rel=0.02)
    assert {**coarse, "optimiser": 8_000_000} == exact
