"""What is known of a model with a text part, which layers are adapted, and which stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from backend import requests as rq
from backend.engine.methods import target_choice
from backend.engine.methods.adaptable import adaptable
from backend.engine.methods.targets import matched
from backend.engine.models import text_part
from backend.engine.models.linear_layers import every_linear_layer, linear_layers
from backend.engine.models.model_size import Shape
from tests.architectures.tiny_models import tiny_model
from tests.engine import architectures
from tests.engine.text_parts import composite


def test_facts_are_those_of_the_text_part(tmp_path: Path) -> None:
    folder = composite.write(tmp_path / "base", composite.gemma3())

    facts = architectures.load(folder).facts

    assert (facts.architecture, facts.layers, facts.hidden_size) == ("gemma3", 3, 32)
    assert (facts.context_length, facts.tied_embeddings) == (256, True)
    assert facts.untouched == [composite.TOWER, "the multi modal projector (528 parameters)"]


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (composite.llama4, "vision model (17 K parameters), which is in its files and not loaded"),
        (composite.qwen3_5, "visual (29 K parameters), which is in its files and not loaded"),
    ],
)
def test_what_a_model_of_text_alone_leaves_in_its_files_is_named(
    tmp_path: Path, build: Callable[[], PreTrainedModel], part: str
) -> None:
    facts = architectures.load(composite.write(tmp_path / "base", build())).facts

    assert part in facts.untouched
    assert (facts.layers, facts.hidden_size, facts.context_length) == (3, 32, 256)
    assert facts.memory_predicted_bytes == 4 * facts.parameters
    assert 0 <= facts.memory_measured_bytes - facts.memory_predicted_bytes < 10_000


@pytest.mark.parametrize(
    ("kind", "changes", "layers", "width", "context"),
    [
        ("mpt", {}, 2, 32, 128),
        ("bloom", {}, 2, 32, 0),
        ("gpt_neo", {}, 2, 32, 128),
        ("rwkv", {}, 2, 32, 128),
        ("gpt2", {}, 2, 32, 128),
        ("opt", {}, 2, 32, 128),
        ("gpt_neox", {}, 2, 32, 128),
    ],
)
def test_sizes_are_found_whatever_a_configuration_calls_them(
    kind: str, changes: dict[str, Any], layers: int, width: int, context: int
) -> None:
    model = architectures.tiny(kind, **changes)

    found = (text_part.layers(model), text_part.width(model))
    assert found == (layers, width)
    context_length = text_part.context_length(model.config)
    assert context_length == (context or context_length)


def test_the_decoder_of_a_model_with_an_encoder_counts_alone() -> None:
    config = AutoConfig.for_model(
        "whisper", d_model=32, decoder_layers=3, encoder_layers=2, decoder_attention_heads=4,
        decoder_ffn_dim=48, vocab_size=100, max_target_positions=64, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)

    assert (text_part.layers(model), text_part.width(model)) == (3, 32)
    assert text_part.context_length(model.config) == 64


@pytest.mark.parametrize(
    "build", [composite.gemma3, composite.gemma4, composite.got_ocr2, composite.fuyu]
)
@pytest.mark.parametrize("wanted", ["all-linear", "attention", ["q_proj"]])
def test_peft_finds_the_targets_in_the_text_part_alone(
    build: Callable[[], PreTrainedModel], wanted: Any
) -> None:
    model = build()
    layers = linear_layers(model)
    if wanted == ["q_proj"] and "query_key_value" in str(layers):
        wanted = ["query_key_value"]
    names = target_choice.choose(rq.Lora(targets=wanted), layers).modules
    config = LoraConfig(target_modules=names, task_type="CAUSAL_LM")
    expected = {layer.name for layer in matched(config, layers)}

    peft = get_peft_model(model, config)

    adapted = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
        for name, _ in peft.named_parameters()
        if ".lora_A." in name
    }
    assert adapted == expected
    assert all("language_model." in name for name in adapted)
    assert wanted != "all-linear" or adapted == {layer.name for layer in layers}


def test_quantisation_counts_the_layers_of_every_part() -> None:
    model = composite.gemma3()

    every, text = every_linear_layer(model), linear_layers(model)

    assert len(text) == 3 * 7
    assert len(every) > len(text)
    assert {layer.name for layer in every} - {layer.name for layer in text} <= text.elsewhere


def test_models_of_text_alone_have_the_targets_they_had() -> None:
    for kind, expected in {
        "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        "gpt2": ["c_attn", "c_fc", "c_proj"],
        "gpt_neox": ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
    }.items():
        layers = linear_layers(architectures.tiny(kind))
        assert target_choice.choose(rq.Lora(), layers).modules == expected
        assert layers.outside == []


def test_a_layer_that_returns_more_than_one_tensor_is_left_out() -> None:
    """PEFT 0.21.2 cannot adapt the router of Llama 4, which is a linear layer by its class."""
    config = composite.llama4().config.text_config
    model = AutoModelForCausalLM.from_config(config)

    assert not any("router" in layer.name for layer in linear_layers(model))
    peft = get_peft_model(model, LoraConfig(target_modules=["router"], task_type="CAUSAL_LM"))
    with pytest.raises(AttributeError, match="'tuple' object has no attribute 'dtype'"):
        peft(input_ids=torch.tensor([[5, 6]]))


@pytest.mark.parametrize("kind", ["mamba", "falcon_h1"])
def test_layers_that_peft_refuses_are_no_targets(kind: str) -> None:
    model = tiny_model(kind)
    layers = adaptable(model)

    names = target_choice.choose(rq.Lora(rank=2), layers).modules
    assert not any(name.endswith("mixer.out_proj") for name in names)
    assert names
    get_peft_model(model, LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="incompatible with Mamba"):
        get_peft_model(
            tiny_model(kind), LoraConfig(target_modules=["out_proj"], task_type="CAUSAL_LM")
        )


@pytest.mark.parametrize("kind", ["git", "phi4_multimodal", "moss_transcribe_diarize"])
def test_towers_inside_of_the_decoder_are_left_alone(kind: str) -> None:
    model = tiny_model(kind)
    layers = linear_layers(model)

    assert layers.outside
    assert not any(text_part.part_named_in(layer.name) for layer in layers)
    peft = get_peft_model(
        model,
        LoraConfig(
            r=2,
            target_modules=target_choice.choose(rq.Lora(rank=2), layers).modules,
            task_type="CAUSAL_LM",
        ),
    )
    peft(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    unused = [n for n, p in peft.named_parameters() if "lora_B" in n and p.grad is None]
    assert unused == []


def test_a_layer_that_takes_groups_of_rows_is_left_out() -> None:
    """PEFT 0.21.2 cannot adapt the grouped projection of DeepSeek-V4."""
    model = tiny_model("deepseek_v4")
    grouped = [n for n, m in model.named_modules() if type(m).__name__.endswith("GroupedLinear")]

    assert grouped
    assert not {layer.name for layer in linear_layers(model)} & set(grouped)


def test_sizes_that_differ_between_layers_count_with_the_largest() -> None:
    model = tiny_model("gemma4")
    config = text_part.text_config(model.config)
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        _ = config.head_dim

    heads = [each.head_dim for each in config.per_layer_config]
    assert text_part.largest(config, "head_dim") == max(heads)
    assert Shape.of(model).heads_width >= max(heads)
