"""Short runs on the starter through the real service: starting, stopping and comparing them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend import Service
from backend import requests as rq
from backend.engine.training.trainer import AdapterTrainer
from backend.results import RunResult

TEXTS = ["Where is the cat?", "The cat is on the mat.", "Arr, the cat be on the mat!", "Hello!"]
QUICK: dict[str, Any] = {"data": "starter:pirate", "tokens_per_step": 256, "precision": "fp32"}


def train(service: Service, name: str, **fields: Any) -> RunResult:
    request = rq.Train(**{**QUICK, "name": name, **fields})
    result: RunResult = service.start(request).result(timeout=300)
    return result


def scores(service: Service, variant: rq.Variant) -> list[float]:
    request = rq.Score(texts=TEXTS, variants=[variant])
    values: list[float] = service.start(request).result(timeout=60).scores[0]
    return values


def weights(run: RunResult) -> dict[str, torch.Tensor]:
    return load_file(Path(run.adapter_path) / "adapter_model.safetensors")


def assert_same_bits(left: RunResult, right: RunResult) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def stop_after(service: Service, monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    """Press Stop while the given step computes."""
    original = AdapterTrainer.training_step
    pressed: list[int] = []

    def pressing(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1 and not pressed:
            pressed.append(step)
            service.stop()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", pressing)
