"""Accumulating over several packs gives the gradient of all of them at once, on every model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.data.token_arrays import Tokens
from backend.engine.methods import peft_io
from backend.engine.models.linear_layers import linear_layers
from backend.engine.training import trainer, trainer_arguments
from backend.engine.training.extension import Stretch
from backend.engine.training.packing import Packs
from tests.engine.architectures import tiny

LENGTHS = (12, 5, 9, 20)


class _Gradients(TrainerCallback):
    """Keeps the gradients that the optimizer gets."""

    def __init__(self) -> None:
        self.found = torch.empty(0)

    def on_pre_optimizer_step(self, *args: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        grads = [p.grad.reshape(-1).clone() for p in model.parameters() if p.grad is not None]
        self.found = torch.cat(grads)


def gradient(folder: Path, kind: str, packs: list[list[int]], *, accepts: bool | None) -> Any:
    """Return the gradient of the only step of a run, and the loss that it reports."""
    model = tiny(kind)
    if accepts is not None:
        model.accepts_loss_kwargs = accepts  # type: ignore[assignment]
    random = np.random.default_rng(0)
    documents = [
        Tokens(random.integers(3, 4000, n).astype(np.int32), random.random(n) < 0.7)
        for n in LENGTHS
    ]
    request = rq.Train(name="a", adapter=rq.Lora(rank=2), accumulation=len(packs), max_steps=1)
    config = peft_io.configure(request.adapter, linear_layers(model), model.name_or_path)
    config.init_lora_weights = False
    torch.manual_seed(0)
    kept = _Gradients()
    wanted = trainer_arguments.arguments(request, folder=folder, total_steps=1, device="cpu")
    wanted.max_grad_norm = 0.0  # clipping would hide another size
    wanted.set_save("no")
    running = trainer.AdapterTrainer(
        model=peft_io.apply(model, None, config, "ad_test"),
        base=SimpleNamespace(device=torch.device("cpu")),  # type: ignore[arg-type]
        adapter_id="ad_test",
        packs=Packs(documents, packs),
        request=request,
        stretches=[Stretch(start=0, steps=1)],
        precision="fp32",
        control=Control(0, lambda *_: None),
        arguments=wanted,
        callbacks=[kept],
        total_steps=1,
        changes=[],
    )
    running.train()
    return kept.found, running.state.log_history[0]["loss"]


@pytest.mark.parametrize(
    ("kind", "accepts"), [("llama", None), ("gemma3_text", None), ("gemma3_text", False)]
)
def test_accumulating_gives_the_gradient_of_one_step(
    tmp_path: Path, kind: str, accepts: bool | None
) -> None:
    """Transformers 5.23 divides the loss of models with `accepts_loss_kwargs = False` again."""
    whole, loss = gradient(tmp_path, kind, [[0, 1, 2, 3]], accepts=accepts)
    parts, summed = gradient(tmp_path, kind, [[0], [1], [2], [3]], accepts=accepts)

    assert whole.norm() > 0
    assert (parts - whole).norm() / whole.norm() < 1e-4
    assert summed == pytest.approx(loss, rel=1e-3)
