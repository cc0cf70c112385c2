"""A paused run on the experts of a mixture: it answers, keeps its place, and goes on."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend import Service
from backend import requests as rq
from backend.engine.training.trainer import AdapterTrainer
from backend.errors import Unsupported
from backend.results import RunResult
from tests.architectures.tiny_models import write_model
from tests.engine import tiny

FIELDS: dict[str, Any] = {
    "data": "starter:pirate",
    "tokens_per_step": 128,
    "precision": "fp32",
    "adapter": rq.Lora(rank=2, experts=True),
    "max_steps": 4,
}
OTHER = tiny.lora(r=2, target_modules=["o_proj"], target_parameters=["experts.down_proj"])
PLAIN = tiny.lora(r=2, target_modules=["o_proj"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    base = write_model(tmp_path_factory.mktemp("base"), "mixtral")
    with tiny.start_service(tmp_path_factory.mktemp("workspace"), base) as service:
        tiny.enlist(service, "other", OTHER)
        tiny.enlist(service, "plain", PLAIN)
        yield service


def scores(service: Service, name: str) -> list[float]:
    request = rq.Score(texts=list(tiny.TEXTS), variants=[[(name, 1.0)]])
    found: list[float] = service.start(request).result(timeout=60).scores[0]
    return found


def wait_for(service: Service, phase: str) -> None:
    until = time.monotonic() + 60
    while service.snapshot().phase != phase:
        assert time.monotonic() < until, f"never {phase}: {service.snapshot().phase}"
        time.sleep(0.01)


def test_it_answers_and_goes_on_with_the_same_bits(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: RunResult = service.start(rq.Train(name="whole", **FIELDS)).result(timeout=120)
    original, asked = AdapterTrainer.training_step, threading.Event()

    def stepping(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1 and not asked.is_set():
            asked.set()
            service.pause()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", stepping)
    job = service.start(rq.Train(name="paused", **FIELDS))
    wait_for(service, "paused")

    half = scores(service, "paused")
    assert half != pytest.approx(scores(service, "plain"), rel=1e-6)
    with pytest.raises(Unsupported, match="PEFT cannot keep another adapter beside 'paused'"):
        scores(service, "other")
    assert scores(service, "paused") == half
    service.resume()
    run: RunResult = job.result(timeout=120)

    ours, expected = (
        load_file(Path(each.adapter_path) / "adapter_model.safetensors") for each in (run, whole)
    )
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in ours)
