"""One process computes on one device, however many GPUs Trainer finds on the machine."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from backend import Service
from backend import requests as rq
from backend.engine.core import devices
from backend.engine.training import step_loss, trainer_arguments
from tests.engine.starter_runs import QUICK, assert_same_bits, stop_after, train

STEPS: dict[str, Any] = {"adapter": rq.Lora(rank=2, dropout=0.1), "max_steps": 6}
TRAIN = rq.Train(name="x", data="starter:pirate")


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyTorch say that there are four NVIDIA GPUs; none of them can be computed on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)


def made(folder: Path, device: str) -> TrainingArguments:
    return trainer_arguments.arguments(
        TRAIN, folder=folder, total_steps=2, device=torch.device(device)
    )


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_process_uses_the_gpu_that_its_base_is_on(
    four_gpus: None, tmp_path: Path, device: str
) -> None:
    arguments = made(tmp_path, device)

    assert arguments.n_gpu == 1
    assert arguments.device == torch.device(device)
    assert arguments.train_batch_size == 1
    assert arguments.parallel_mode.value == "not_parallel"


def test_a_processor_is_used_on_a_machine_with_gpus(four_gpus: None, tmp_path: Path) -> None:
    arguments = made(tmp_path, "cpu")

    assert arguments.n_gpu == 0
    assert arguments.device == torch.device("cpu")


def test_a_run_on_the_processor_goes_well_beside_gpus(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(base_only, "no gpus", **STEPS)
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    monkeypatch.setattr(torch.nn, "DataParallel", Refused)

    assert_same_bits(plain, train(base_only, "four gpus", **STEPS))


class Refused(torch.nn.DataParallel):
    """Fails where a model is wrapped for several GPUs."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        raise AssertionError("The model was wrapped for several GPUs.")


def refuse(*_: Any) -> None:
    raise AssertionError("A step was timed.")


def test_the_random_numbers_of_a_gpu_are_resumed_whatever_its_kind(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer saves those of NVIDIA's GPUs alone (Transformers 5.23)."""
    put_back: list[torch.Tensor | None] = []
    state = torch.arange(16, dtype=torch.uint8)
    monkeypatch.setattr(devices, "random_state", lambda device: state)
    monkeypatch.setattr(devices, "set_random_state", lambda device, found: put_back.append(found))
    with monkeypatch.context() as patch:
        stop_after(base_only, patch, step=3)
        stopped = base_only.start(rq.Train(**QUICK, name="gpu random", **STEPS)).result(300)
    put_back.clear()
    monkeypatch.setattr(step_loss, "time_step", refuse)  # would put them back, too

    base_only.start(rq.Resume(run_id=stopped.run_id)).result(timeout=300)

    assert any(
        found is not state and torch.equal(found, state) for found in put_back if found is not None
    )
