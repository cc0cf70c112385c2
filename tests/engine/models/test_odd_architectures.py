"""Traits of single architectures that would make a result wrong, or a check say what is not so."""

import json
from pathlib import Path

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend.errors import ModelError, Unsupported
from tests.architectures import tiny_models
from tests.engine.architectures import load


def test_rwkv_answers_with_the_function_that_is_trained(tmp_path: Path):
    """Transformers 5.23 would rescale its weights in evaluation mode, but not an adapter's."""
    folder = tiny_models.write_model(
        tmp_path / "base", "rwkv", num_hidden_layers=4, rescale_every=2
    )
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "Hello!", "completion": "Ahoy there, matey."}\n' * 6)
    with Service(Settings(workspace=tmp_path / "workspace", runtime="inline")) as service:
        service.start(rq.LoadModel(source=str(folder))).result(timeout=60)
        train = rq.Train(name="one", data=str(data), epochs=4, learning_rate=1e-2, eval_share=0.0)
        service.start(train).result(timeout=60)
        merge = rq.Merge(variant=[("one", 1.0)], destination=str(tmp_path / "merged"))
        merged = service.start(merge).result(timeout=60)
    assert merged.max_difference <= 1e-5  # of the merged model from the adapter


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_base_with_linear_layers_of_its_own_is_not_offered_in_4_bit(
    quantization: str, tmp_path: Path
):
    folder = tiny_models.write_model(tmp_path / "base", "falcon")
    with pytest.raises(Unsupported, match="no layers that bitsandbytes can quantise"):
        load(folder, quantization=quantization)
    with Service(Settings(workspace=tmp_path / "workspace", runtime="inline")) as service:
        table = service.start(rq.QuantizationTable(source=str(folder))).result(timeout=60)
    assert table.recommended == "none"
    assert all(bool(c.blocker) == (c.quantization != "none") for c in table.choices)


def test_a_model_that_fails_only_when_it_is_quantised_says_so(tmp_path: Path):
    folder = tiny_models.write_model(tmp_path / "base", "mamba")
    with pytest.raises(ModelError, match="when it is quantised") as caught:
        load(folder, quantization="int8")
    assert caught.value.cure == "Load it without quantisation."


def test_the_implementation_of_attention_that_a_config_names_is_not_needed(tmp_path: Path):
    folder = tiny_models.write_model(tmp_path / "base", "llama")
    config = json.loads((folder / "config.json").read_text())
    config["_attn_implementation"] = "flash_attention_2"
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).model.config._attn_implementation != "flash_attention_2"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_base_with_a_very_short_context_is_trained_and_kept(kind: str, tmp_path: Path):
    """The texts that prove a saved adapter are longer than this context."""
    key = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    folder = tiny_models.write_model(tmp_path / "base", kind, **{key: 12})
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "The cat is here."}\n{"text": "The sea is far away."}\n' * 3)
    with Service(Settings(workspace=tmp_path / "workspace", runtime="inline")) as service:
        service.start(rq.LoadModel(source=str(folder))).result(timeout=60)
        train = rq.Train(name="one", data=str(data), epochs=1, eval_share=0.0)
        report = service.start(rq.Preflight(train=train)).result(timeout=60)
        assert report.ready, report.problems
        assert service.start(train).result(timeout=60).state == "finished"
