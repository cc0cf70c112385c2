"""A base in fp16: gradients that fp16 cannot hold are learned, and no overflow ends a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import Service
from backend import requests as rq
from backend.engine.models import loading
from backend.engine.training import loss_scaling
from backend.engine.training.trainer import AdapterTrainer
from backend.errors import Diverged
from tests.engine.export.test_run_export import export, losses_of_run, losses_of_script
from tests.engine.starter_runs import assert_same_bits, stop_after, train, weights
from tests.engine.tiny import start_service, write_base

FAINT = {"o_proj": 1e-4, "lm_head": 1e-2}
FIELDS: dict[str, Any] = {
    "adapter": rq.Lora(rank=4, targets=["v_proj"]),
    "max_steps": 6,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def faint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose value layers get gradients of about 1e-9: fp16 has nothing below 6e-8."""
    folder = write_base(tmp_path_factory.mktemp("faint"))
    file = folder / "model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
    for name, tensor in tensors.items():
        for part, factor in FAINT.items():
            if part in name:
                tensors[name] = (factor * tensor.float()).half()
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a processor stand for a GPU that stores fp16."""
    monkeypatch.setattr(loading, "choose_precision", lambda *_, **__: ("fp16", "as a T4 does"))


@pytest.fixture
def service(faint: Path, tmp_path: Path, in_fp16: None) -> Iterator[Service]:
    with start_service(tmp_path / "half", faint) as service:
        yield service


def learned(service: Service, name: str, **fields: Any) -> torch.Tensor:
    run = train(service, name, **{**FIELDS, **fields})
    (up,) = (tensor for key, tensor in weights(run).items() if "lora_B" in key)
    return up


def test_gradients_that_vanish_in_fp16_are_learned(
    service: Service, faint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = learned(service, "half")

    monkeypatch.undo()
    with start_service(tmp_path / "whole", faint) as exact:
        expected = learned(exact, "whole")
    assert service.snapshot().base.precision == "fp16"  # type: ignore[union-attr]
    assert up.dtype == torch.float32
    assert expected.abs().max() > 1e-3
    assert torch.cosine_similarity(up.flatten(), expected.flatten(), dim=0) > 0.95


def test_a_step_that_overflows_is_left_out_and_said(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled_too_much(monkeypatch, 2.0**40)

    up = learned(service, "overflow", max_steps=30)

    run_id = service.snapshot().runs[0].id
    events = service.events(run_id)
    norms = [each.gradient_norm for each in events if each.type == "step"]
    said = [each.text for each in events if "too large for fp16" in (each.text or "")]
    assert norms[0] is None
    assert norms[-1] is not None
    assert len(said) == norms.count(None)
    assert said[0].startswith("Step 1 was skipped and changed no weight")
    assert up.isfinite().all()
    assert up.abs().max() > 1e-3


def test_a_run_whose_gradients_are_never_finite_ends(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled_too_much(monkeypatch, 1.0)
    broken = AdapterTrainer.training_step

    def infinite(self: AdapterTrainer, model: Any, *rest: Any, **named: Any) -> Any:
        loss = broken(self, model, *rest, **named)
        next(p.grad for p in model.parameters() if p.grad is not None).fill_(torch.inf)
        return loss

    monkeypatch.setattr(AdapterTrainer, "training_step", infinite)

    with pytest.raises(Diverged, match="The gradients of step 1 are not finite"):
        learned(service, "never")


def test_a_resumed_run_goes_on_with_its_scale_and_ends_with_the_same_bits(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled_too_much(monkeypatch, 2.0**32)  # halved in the first steps, so that it has to be kept
    fields = {**FIELDS, "adapter": rq.Lora(rank=4, dropout=0.1), "max_steps": 20}
    whole = train(service, "uninterrupted", **fields)
    with monkeypatch.context() as patch:
        stop_after(service, patch, step=12)
        stopped = train(service, "interrupted", **fields)

    resumed = service.start(rq.Resume(run_id=stopped.run_id)).result(timeout=300)

    assert (stopped.steps, resumed.steps) == (12, 20)
    assert_same_bits(whole, resumed)


def scaled_too_much(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Begin with another scale than torch does."""

    def install(accelerator: Any, device: torch.device) -> None:
        accelerator.scaler = torch.amp.GradScaler(device.type, init_scale=scale)

    monkeypatch.setattr(loss_scaling, "install", install)


def test_the_plain_script_scales_the_same_way(service: Service, tmp_path: Path) -> None:
    run = train(service, "exported", **{**FIELDS, "max_steps": 8})
    export(service, run.run_id, tmp_path / "out")

    losses = losses_of_script(tmp_path / "out", tmp_path / "elsewhere")

    assert 'COMPUTE_PRECISION = "fp16"' in (tmp_path / "out" / "train_again.py").read_text("utf-8")
    assert losses == pytest.approx(losses_of_run(service, run.run_id), rel=1e-3)
    again = load_file(tmp_path / "out" / "adapter_again" / "adapter_model.safetensors")
    for key, tensor in weights(run).items():
        if "lora_B" in key:  # of the two factors, the one that begins at zero
            assert torch.cosine_similarity(again[key].flatten(), tensor.flatten(), dim=0) > 0.99
