"""Presets of target modules reach exactly the layers that they name, on every architecture."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from backend import requests as rq
from backend.engine.methods import low_rank, peft_io, plain_lora, target_choice, targets
from backend.engine.models.linear_layers import linear_layers
from tests.engine.architectures import SETTINGS, tiny

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # PEFT sets it
ATTENTION = ("attn", "self_attn", "attention", "self_attention")
"""What a module that attends is called in these architectures."""


def adapted(model: torch.nn.Module) -> set[str]:
    """Return the layers that PEFT has put an adapter on, by the base's own names."""
    found = (name for name, part in model.named_modules() if isinstance(part, LoraLayer))
    return {name.removeprefix("base_model.model.") for name in found}


def attends(name: str) -> bool:
    return any(part in ATTENTION for part in name.split("."))


@pytest.mark.parametrize("preset", ["attention", "all-linear"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_preset_reaches_its_layers_and_no_others(tmp_path: Path, kind: str, preset: Any) -> None:
    model = tiny(kind)
    layers = linear_layers(model)
    wanted = {t.name for t in layers if preset == "all-linear" or attends(t.name)}
    config = peft_io.configure(rq.Lora(rank=1, targets=preset), layers, kind)

    peft_io.apply(model, None, config, "ad_test")
    assert adapted(model) == wanted

    config.save_pretrained(str(tmp_path))
    reread = peft_io.read_config(tmp_path)
    reread.base_model_name_or_path = kind
    plain = get_peft_model(tiny(kind), reread)
    plain.save_pretrained(str(tmp_path), save_embedding_layers=False)
    assert adapted(PeftModel.from_pretrained(tiny(kind), str(tmp_path))) == wanted


@pytest.mark.parametrize("kind", ["gpt2", "gpt_bigcode"])
def test_attention_of_gpt2_leaves_the_projection_of_its_mlp_alone(kind: str) -> None:
    layers = linear_layers(tiny(kind))

    names = target_choice.choose(rq.Lora(targets="attention"), layers).modules

    assert names == ["attn.c_proj", "c_attn"]


def test_what_is_made_of_an_adapter_of_attention_reaches_no_more() -> None:
    """Blends and conversions name layers the same way."""
    layers = linear_layers(tiny("gpt2"))
    zeros = {t.name: (torch.zeros(1, t.inputs), torch.zeros(t.outputs, 1)) for t in layers}
    some = {name: pair for name, pair in zeros.items() if attends(name)}

    converted, _ = plain_lora.plain(some, layers, "gpt2")
    blend = low_rank.configuration(
        {n: low_rank.Factor(*p) for n, p in some.items()}, layers, "gpt2"
    )

    assert set(converted.target_modules) == set(blend.target_modules) == {"attn.c_proj", "c_attn"}


def test_a_part_of_the_layers_of_one_name_is_named_in_full() -> None:
    layers = linear_layers(tiny("llama"))
    wanted = ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]

    assert targets.target_names(wanted, layers) == wanted
