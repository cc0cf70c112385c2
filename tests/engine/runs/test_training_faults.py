"""Runs that fail: numbers that are not finite, a full disk, too little memory."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend import Service
from backend import requests as rq
from backend.engine.steps import step_loss
from backend.engine.training.trainer import AdapterTrainer
from backend.errors import DiskFull, Diverged, OutOfMemory
from backend.runs.run_summary import describe
from tests.engine.starter_runs import QUICK, scores, train


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scores(base_only, [])
    original = AdapterTrainer.compute_loss

    def poisoned(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 5 else loss

    monkeypatch.setattr(AdapterTrainer, "compute_loss", poisoned)
    job = base_only.start(rq.Train(**{**QUICK, "name": "diverges", "save_every": 4}))
    with pytest.raises(Diverged, match="The loss became nan in step 6") as caught:
        job.result(timeout=300)

    assert "learning rate" in caught.value.cure
    assert job.run_id is not None
    checkpoint = base_only.runs.get(job.run_id).latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4"
    kept = load_file(checkpoint / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert base_only.runs.get(job.run_id).status().state == "failed"
    assert scores(base_only, []) == before


def test_gradients_that_are_not_finite_stop_before_the_correction(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AdapterTrainer.training_step

    def poisoned(self: AdapterTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, *args, **kwargs)
        if self.state.global_step == 5:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(AdapterTrainer, "training_step", poisoned)
    job = base_only.start(rq.Train(**{**QUICK, "name": "steep", "save_every": 2}))
    with pytest.raises(Diverged, match="The gradients of step 6 are not finite") as caught:
        job.result(timeout=300)

    assert job.run_id is not None
    checkpoint = base_only.runs.get(job.run_id).latest_checkpoint()
    assert checkpoint is not None
    kept = load_file(checkpoint / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert "The last checkpoint was saved before that and is good." in caught.value.cure


def test_without_a_checkpoint_none_is_promised(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AdapterTrainer.compute_loss

    def poisoned(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 1 else loss

    monkeypatch.setattr(AdapterTrainer, "compute_loss", poisoned)

    with pytest.raises(Diverged, match="in step 2") as caught:
        train(base_only, "at once")

    assert "checkpoint" not in caught.value.cure


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AdapterTrainer.save_model

    def full_disk(self: AdapterTrainer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.state.global_step == 6:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(AdapterTrainer, "save_model", full_disk)
    fields: dict[str, Any] = {"name": "full disk", "save_every": 3, "max_steps": 8}
    job = base_only.start(rq.Train(**{**QUICK, **fields}))
    with pytest.raises(DiskFull, match="No space left"):
        job.result(timeout=300)
    monkeypatch.undo()

    assert job.run_id is not None
    run = base_only.runs.get(job.run_id)
    assert [p.name for p in run.checkpoints.iterdir()] == ["checkpoint-3"]
    resumed = base_only.start(rq.Resume(run_id=run.id)).result(timeout=300)
    assert resumed.state == "finished"


def test_running_out_of_memory_names_it_and_changes_nothing(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scores(base_only, [])

    def exhausted(*args: Any) -> Any:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(step_loss, "loss_sum", exhausted)
    with pytest.raises(OutOfMemory, match="ran out of memory") as caught:
        train(base_only, "too big", max_steps=2)
    monkeypatch.undo()

    assert "tokens per batch" in caught.value.cure
    assert scores(base_only, []) == before
    assert train(base_only, "too big", max_steps=2).state == "finished"


def test_a_run_that_runs_out_of_memory_keeps_its_steps_and_can_be_retried(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scores(base_only, [])
    real, calls = AdapterTrainer.compute_loss, iter(range(100))

    def exhausted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", exhausted)
    request = rq.Train(
        **{**QUICK, "tokens_per_step": 1024}, name="grew", save_every=99, max_steps=5
    )
    job = base_only.start(request)
    with pytest.raises(OutOfMemory, match=r"The largest part is .* about .* of ") as caught:
        job.result(timeout=300)
    monkeypatch.undo()

    assert job.run_id is not None
    run = base_only.runs.get(job.run_id)
    summary = describe(run)
    assert (summary.state, summary.step, summary.resumable) == ("failed", 3, True)
    assert [p.name for p in run.checkpoints.iterdir()] == ["checkpoint-3"]
    assert scores(base_only, []) == before
    assert caught.value.cure.startswith("Retry with ")
    assert summary.retry
    again = rq.Train(**{**request.model_dump(), **summary.retry, "name": "smaller", "max_steps": 4})
    assert train_is_smaller(again, request)
    assert base_only.start(again).result(timeout=300).state == "finished"
    resumed = base_only.start(rq.Resume(run_id=run.id)).result(timeout=300)
    assert resumed.state == "finished"


def train_is_smaller(left: rq.Train, right: rq.Train) -> bool:
    fewer = left.tokens_per_step < right.tokens_per_step
    return fewer or (left.gradient_checkpointing and not right.gradient_checkpointing)
