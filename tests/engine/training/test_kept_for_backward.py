"""The memory estimate's activations are the tensors that autograd keeps for the backward pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.engine.core.job_control import Control
from backend.engine.data.token_arrays import Tokens
from backend.engine.methods import peft_io
from backend.engine.models import loading, quantization
from backend.engine.models.linear_layers import linear_layers
from backend.engine.models.loading import Base
from backend.engine.models.model_size import Shape
from backend.engine.steps import packing, step_loss
from backend.engine.training import memory_estimate
from backend.engine.training.memory_estimate import Setup
from backend.requests import LoadModel, Lora, Train
from backend.results.training_layout import TrainingLayout
from benchmarks.models import Size, random_llama
from benchmarks.row_training import random_falcon

SIZE = Size(width=256, inner=704, layers=3, heads=4)
LENGTH, COUNT = 48, 8
CLOSE = 0.1


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("llama"), SIZE)


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_falcon(tmp_path_factory.mktemp("falcon"), SIZE)


def kept_bytes(base: Base, peft: torch.nn.Module, batch: dict[str, Any], precision: str) -> int:
    """Count the bytes kept by a forward pass, without the model's own tensors and the logits."""
    own = (*peft.parameters(), *peft.buffers())
    known = {each.untyped_storage().data_ptr() for each in own}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        is_logits = tensor.ndim > 1 and tensor.shape[-1] == base.facts.vocabulary
        if storage.data_ptr() not in known and not is_logits:
            kept[storage.data_ptr()] = storage  # alive, so no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step_loss.loss_sum(peft, batch, step_loss.autocast(base.device, precision))
    return sum(storage.nbytes() for storage in kept.values())


def compared(
    folder: Path, layout: TrainingLayout, precision: str, adapter: Lora, load: dict[str, str]
) -> tuple[int, int]:
    """Return the activations as estimated and as kept, in bytes."""
    base = loading.load(LoadModel(source=str(folder), **load), Control(0, lambda message: None))
    quantization.narrow_norms(base.model)
    config = peft_io.configure(adapter, linear_layers(base.model), str(folder))
    documents = [Tokens(np.arange(LENGTH, dtype=np.int32), np.ones(LENGTH, bool))] * COUNT
    packs = packing.Packs(documents, [list(range(COUNT))], layout=layout)
    computed = precision if base.facts.precision == "fp32" else base.facts.precision
    with quantization.prepared(base.model):
        peft = peft_io.apply(base.model, None, config, "ad_probe")
        peft.train()
        with step_loss.step_mode(base, layout=layout):
            kept = kept_bytes(base, peft, packs[0], computed)
    shape = Shape.of(base.model, base.facts.parameters)
    setup = Setup.of_run(
        Train(name="a", data="starter"),
        base.facts,
        config=config,
        layers=list(shape.adaptable),
        learned_share=1.0,
        computed=computed,
        layout=memory_estimate.layout_of(base.model, packs, rounded=computed != "fp32"),
    )
    return memory_estimate.kept_activations(shape, setup), kept


@pytest.mark.parametrize(("precision", "load"), [
    ("fp32", {"precision": "fp32"}),
    ("bf16", {"precision": "fp32"}),
    ("bf16", {"precision": "bf16"}),
    ("fp32", {"precision": "fp32", "quantization": "nf4"}),
    ("bf16", {"precision": "bf16", "quantization": "nf4"}),
    ("bf16", {"precision": "bf16", "quantization": "int8"}),
])  # fmt: skip
def test_a_gated_model_keeps_what_is_estimated(
    llama: Path, precision: str, load: dict[str, str]
) -> None:
    estimated, kept = compared(llama, "packed", precision, Lora(), load)
    assert estimated == pytest.approx(kept, rel=CLOSE)


@pytest.mark.parametrize("stored", ["fp32", "bf16"])
def test_dora_keeps_what_is_estimated(llama: Path, stored: str) -> None:
    adapter, load = Lora(use_dora=True), {"precision": stored}
    estimated, kept = compared(llama, "packed", stored, adapter, load)
    assert estimated == pytest.approx(kept, rel=CLOSE)


@pytest.mark.parametrize("stored", ["fp32", "bf16"])
def test_rows_with_biased_attention_keep_what_is_estimated(falcon: Path, stored: str) -> None:
    estimated, kept = compared(falcon, "rows", stored, Lora(), {"precision": stored})
    assert estimated == pytest.approx(kept, rel=CLOSE)
