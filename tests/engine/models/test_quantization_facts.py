"""Quantised bases: what a person is told of them, and which are refused."""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from backend import requests as rq
from backend.engine.models import loading, quantization
from backend.engine.models.linear_layers import linear_layers
from backend.errors import InvalidRequest, Unsupported
from backend.settings import STARTER
from tests.engine.quantised_bases import KINDS, SILENT, base, plain_int8

# -- what a person is told -----------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_predicted_to_the_byte(kind: str, double: bool) -> None:
    loaded = base(kind, double_quant=double and kind != "int8").facts

    assert loaded.memory_measured_bytes == pytest.approx(loaded.memory_predicted_bytes, rel=1e-3)
    assert loaded.parameters == base("none").facts.parameters
    assert loaded.bytes_saved == loaded.quantized_full_bytes - loaded.quantized_bytes > 0


def test_head_embeddings_and_norms_stay_in_full_precision() -> None:
    model: Any = base("nf4").model

    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight.dtype == torch.float32
    assert model.model.embed_tokens.weight.dtype == torch.float32
    assert len(quantization.layers(model)) == 7 * model.config.num_hidden_layers


def test_layers_are_seen_with_their_true_sizes() -> None:
    full = linear_layers(base("none").model)

    for kind in KINDS:
        assert linear_layers(base(kind).model) == full


def test_norms_of_a_bf16_base_are_in_fp32_while_it_learns_and_bit_equal_afterwards() -> None:
    loaded = base("nf4", precision="bf16")
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}

    with quantization.prepared(loaded.model) as said:
        norms = [p for p in loaded.model.parameters() if p.ndim == 1]
        assert {p.dtype for p in norms} == {torch.float32}
        assert "norms cast to fp32" in said

    after = dict(loaded.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_base_in_full_precision_is_left_alone() -> None:
    with quantization.prepared(base("none").model) as said:
        assert said == ""


def test_library_noise_stays_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A plain 8-bit model complains in each layer that is asked; ours never gets there."""
    model, ids = plain_int8().eval(), torch.arange(5, 25)[None]

    def said() -> bool:
        caplog.clear()
        with torch.inference_mode():
            model(ids)
        return "MatMul8bitLt" in caplog.text

    assert not said()
    with caplog.at_level(logging.INFO, logger="bitsandbytes"):
        assert said()  # it is the level that keeps it out


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"double_quant": True}, "Double quantisation is only for 4-bit bases"),
        ({"quantization": "int8", "compute_dtype": "bf16"}, "compute type is only for 4-bit bases"),
    ],
)
def test_settings_of_4_bit_bases_are_refused_elsewhere(fields: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        rq.LoadModel(**fields)


def test_fp16_around_quantised_layers_is_refused() -> None:
    request = rq.LoadModel(quantization="nf4", precision="fp16")
    with pytest.raises(Unsupported, match="cannot be trained correctly in fp16"):
        quantization.require_possible(request, "fp16")


def test_a_checkpoint_that_is_quantised_already_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "gptq"
    shutil.copytree(STARTER / "model", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    with pytest.raises(Unsupported, match="already quantised with GPTQ"):
        loading.prepare(rq.LoadModel(source=str(folder)), SILENT)


def test_kernels_from_the_hub_are_out_of_reach() -> None:
    assert sys.modules["kernels"] is None  # type: ignore[comparison-overlap]
