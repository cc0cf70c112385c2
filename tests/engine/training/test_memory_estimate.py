"""The memory estimate: arithmetic on public shapes, and what follows from it."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from backend.engine.models.model_size import Shape, quantized_bytes, weight_bytes
from backend.engine.training import memory_estimate
from backend.engine.training.memory_estimate import Setup
from backend.errors import Unsupported
from backend.settings import STARTER

GQA = {"hidden_act": "silu", "rms_norm_eps": 1e-5}
LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "tie_word_embeddings": False, **GQA,
}  # fmt: skip
QWEN3_06B = {
    "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True, **GQA,
}  # fmt: skip
SMOLLM2_135M = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 49152, "tie_word_embeddings": True, **GQA,
}  # fmt: skip
PARAMETERS = {
    "Llama 3 8B": (LLAMA_3_8B, 8_030_261_248),
    "Qwen3 0.6B": (QWEN3_06B, 596_049_920),
    "SmolLM2 135M": (SMOLLM2_135M, 134_515_008),
}


def linear_numbers(config: dict[str, Any]) -> int:
    """Count the numbers of all linear layers by hand."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", width // config["num_attention_heads"])
    query = config["num_attention_heads"] * head
    key = config["num_key_value_heads"] * head
    return config["num_hidden_layers"] * (2 * width * query + 2 * width * key + 3 * width * inner)


@pytest.mark.parametrize("name", PARAMETERS)
def test_weights_of_public_shapes_follow_from_their_config(name: str) -> None:
    config, parameters = PARAMETERS[name]
    shape = Shape.from_config(config)
    linear = linear_numbers(config)

    assert shape.parameters == parameters
    assert shape.linear_numbers == linear
    assert weight_bytes(shape, Setup(stored="bf16")) == 2 * parameters
    assert weight_bytes(shape, Setup(stored="fp32")) == 4 * parameters
    nf4 = weight_bytes(shape, Setup(stored="bf16", quantization="nf4"))
    by_hand = 2 * (parameters - linear) + linear // 2 + 4 * linear // 64
    assert nf4 == by_hand + 64 * len(shape.linear)  # each layer has a table of 16 values
    int8 = quantized_bytes(shape, Setup(quantization="int8"))
    assert int8 == linear + 4 * sum(layer.outputs for layer in shape.linear)


def test_a_missing_package_is_not_called_a_wrong_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(config: Any) -> None:
        raise ImportError("FlashAttention2 has been toggled on, but it cannot be used.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", missing)
    with pytest.raises(Unsupported, match="needs a Python package") as refused:
        Shape.from_config(SMOLLM2_135M)

    assert "FlashAttention2" in refused.value.what
    assert "size" not in refused.value.cure


def test_double_quantisation_keeps_layers_below_0_15_of_fp32() -> None:
    shape = Shape.from_config(LLAMA_3_8B)
    setup = Setup(quantization="nf4", double_quant=True)

    assert quantized_bytes(shape, setup) / (4 * shape.linear_numbers) < 0.13


@pytest.fixture(scope="module")
def shape() -> Shape:
    return Shape.from_config(STARTER / "model" / "config.json")


def test_the_parts_add_up_and_leave_the_loaded_base_out_of_the_run(shape: Shape) -> None:
    found = memory_estimate.estimate(shape, Setup(trainable=1000))
    sizes = dict(found.parts)

    assert tuple(sizes) == memory_estimate.PARTS
    assert found.run == found.total - sizes["weights"]
    assert sizes["adapter"] + sizes["gradients"] + sizes["optimiser"] == 16_000


def test_checkpointing_remembers_less_and_fewer_tokens_need_less(shape: Shape) -> None:
    plain = Setup(tokens=4096)

    assert (
        memory_estimate.estimate(shape, replace(plain, checkpointing=True)).run
        < memory_estimate.estimate(shape, plain).run
    )
    assert memory_estimate.estimate(shape, replace(plain, tokens=512)).run < (
        memory_estimate.estimate(shape, plain).run
    )


def test_the_largest_budget_fits_and_the_next_does_not(shape: Shape) -> None:
    setup, free = Setup(), 300_000_000
    budget = memory_estimate.largest_budget(shape, setup, free)
    tight = replace(setup, exact=True)

    assert budget > 0
    assert memory_estimate.estimate(shape, replace(tight, tokens=budget)).run <= free
    assert memory_estimate.estimate(shape, replace(tight, tokens=budget + 64)).run > free


@pytest.mark.parametrize(("share", "fields"), [
    (0.7, {"tokens_per_step"}),
    (0.35, {"gradient_checkpointing"}),
])  # fmt: skip
def test_the_smallest_change_makes_the_run_fit(
    shape: Shape, share: float, fields: set[str]
) -> None:
    shape = replace(shape, layers=32)
    setup = Setup(tokens=8192, learned_share=0.1, exact=True)
    free = round(share * memory_estimate.estimate(shape, setup).run)
    change = memory_estimate.smallest_change(shape, setup, free, longest=64)

    assert change is not None
    assert set(change) == fields
    changed = replace(
        setup,
        tokens=int(change.get("tokens_per_step", setup.tokens)),
        checkpointing=bool(change.get("gradient_checkpointing", False)),
    )
    assert memory_estimate.estimate(shape, changed).run <= free


def test_where_nothing_fits_no_change_is_offered(shape: Shape) -> None:
    assert memory_estimate.smallest_change(shape, Setup(tokens=512), 1_000_000, longest=64) is None


def test_a_gpu_is_estimated_without_one() -> None:
    shape = Shape.from_config(LLAMA_3_8B)
    setup = Setup(stored="bf16", computed="bf16", device="cuda", trainable=1000, tokens=2048)
    found = dict(memory_estimate.estimate(shape, setup).parts)

    width, inner, layers, tokens = 4096, 14336, 32, 2048
    kept = layers * tokens * (12 * width + 10 * width + 8 * inner)
    loss = 256 * 128_256 * 16 + 2 * 2 * tokens * width  # 256 tokens at a time; the head's input
    assert found["weights"] == 2 * 8_030_261_248
    assert found["activations"] == round(memory_estimate.FRAGMENTED_ON_GPU * kept)
    assert found["logits"] == round(memory_estimate.FRAGMENTED_ON_GPU * loss)


def test_a_large_vocabulary_is_not_the_peak() -> None:
    wide = Shape.from_config({**SMOLLM2_135M, "vocab_size": 262_144})
    setup = Setup(tokens=2048, exact=True)
    at_once = 2048 * 262_144 * memory_estimate.LOGIT_BYTES

    assert dict(memory_estimate.estimate(wide, setup).parts)["logits"] < at_once / 4


def test_in_bf16_on_a_processor_each_length_costs_compiled_kernels(shape: Shape) -> None:
    def overhead(**fields: Any) -> int:
        return dict(memory_estimate.estimate(shape, Setup(**fields)).parts)["overhead"]

    few, many = (overhead(stored="bf16", computed="bf16", lengths=n) for n in (2, 9))
    assert many - few == 7 * memory_estimate.COMPILED
    assert overhead(lengths=2) == overhead(lengths=9)
