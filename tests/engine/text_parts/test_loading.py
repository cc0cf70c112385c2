"""Checkpoints under other names than the model's: quantised, with more layers, and refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import requests as rq
from backend.errors import ModelError
from tests.architectures.tiny_models import write_model
from tests.engine import architectures, tiny
from tests.engine.text_parts import composite

WEIGHTS = "model.safetensors"


def test_a_quantised_model_is_the_same_base_under_the_names_of_its_files(tmp_path: Path) -> None:
    folder = composite.write(tmp_path / "base", composite.gemma3())

    full = architectures.load(folder).facts
    packed = architectures.load(folder, quantization="nf4").facts

    assert "language_model.model.layers.0.mlp.up_proj.weight" in load_file(folder / WEIGHTS)
    assert packed.fingerprint == full.fingerprint
    assert packed.untouched == full.untouched
    assert packed.parameters == full.parameters
    assert packed.memory_measured_bytes == pytest.approx(packed.memory_predicted_bytes, rel=0.02)


def test_another_model_under_these_names_is_another_base(tmp_path: Path) -> None:
    folder = composite.write(tmp_path / "base", composite.gemma3())
    before = architectures.load(folder, quantization="nf4").facts.fingerprint
    tensors = load_file(folder / WEIGHTS)
    tensors["language_model.model.layers.1.mlp.up_proj.weight"] += 1
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    assert architectures.load(folder, quantization="nf4").facts.fingerprint != before


def with_one_more_layer(folder: Path) -> None:
    """Add a layer after the last one, as checkpoints have it that predict two tokens ahead."""
    tensors = load_file(folder / WEIGHTS)
    more = {k.replace("layers.1.", "layers.2."): t for k, t in tensors.items() if "layers.1." in k}
    extra = {"model.layers.2.eh_proj.weight": torch.ones(32, 64)}
    more = {key: tensor.clone() for key, tensor in more.items()}
    save_file({**tensors, **more, **extra}, folder / WEIGHTS, metadata={"format": "pt"})


def test_layers_that_predict_ahead_are_left_out_and_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", "glm4_moe", num_nextn_predict_layers=1)
    with_one_more_layer(folder)

    facts = architectures.load(folder).facts

    assert facts.layers == 2
    assert [part.split(" (")[0] for part in facts.untouched] == ["layers.2"]


def test_layers_that_no_configuration_counts_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", "glm4_moe", num_nextn_predict_layers=0)
    with_one_more_layer(folder)

    with pytest.raises(ModelError, match=r"there is no place for model\.layers\.2\."):
        architectures.load(folder)


def test_a_merge_keeps_the_layers_that_predict_ahead(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", "exaone4", num_nextn_predict_layers=1)
    with_one_more_layer(folder)
    with tiny.start_service(tmp_path / "workspace", folder) as service:
        tiny.enlist(service, "mine", tiny.lora(r=2))
        merged = service.start(
            rq.Merge(variant=[("mine", 1.0)], destination=str(tmp_path / "merged"))
        ).result(timeout=120)

    before, after = load_file(folder / WEIGHTS), load_file(Path(merged.path) / WEIGHTS)
    assert before.keys() == after.keys()
    ahead = [key for key in before if "layers.2." in key]
    assert all(torch.equal(before[key], after[key]) for key in ahead)
