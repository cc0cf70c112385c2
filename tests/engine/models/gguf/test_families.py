"""Each family that is claimed comes out of its GGUF file as the model that went in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from backend.catalogue import gguf_families as known
from backend.engine.models.gguf import checks, conversion, settings
from backend.errors import ModelError, Unsupported, VerificationFailed
from backend.files import gguf_header
from tests.engine.models.gguf import families, gguf_files
from tests.engine.models.gguf.families import FAMILIES, Family

BOUND = 2e-6
"""Of the largest logit, in fp32: the files hold the very weights, so most differ by nothing."""
GROUPED = "falcon, grouped"
CLAIMED = [name for name in FAMILIES if name != GROUPED]


@torch.no_grad()
def scores(model: PreTrainedModel) -> torch.Tensor:
    """Score a text that is longer than every window."""
    ids = (torch.arange(40)[None] * 7 + 3) % families.VOCABULARY
    return model.eval()(input_ids=ids, use_cache=False).logits[0].double()


def convert(file: Path, folder: Path) -> PreTrainedModel:
    folder.mkdir()
    conversion.convert([file], folder, "a card", lambda text, fraction: None)
    read: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return read


def difference(made: PreTrainedModel, original: PreTrainedModel) -> float:
    expected = scores(original)
    return float((scores(made) - expected).abs().max() / expected.abs().max())


def test_every_claimed_architecture_has_a_test() -> None:
    assert {FAMILIES[name].architecture for name in CLAIMED} == set(known.FAMILIES)


@pytest.mark.parametrize("name", CLAIMED)
def test_a_family_comes_out_as_it_went_in(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    original = gguf_files.tiny(family)
    file = gguf_files.write(tmp_path / "model.gguf", family, original)

    made = convert(file, tmp_path / "folder")

    assert difference(made, original) <= BOUND
    assert made.dtype == torch.float32
    assert made.config.model_type in (family.kind, known.FAMILIES[family.architecture])
    assert made.config.eos_token_id == 2


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "nemotron", "bloom"])
def test_weights_that_llama_cpp_did_not_change_give_other_answers(
    name: str, tmp_path: Path
) -> None:
    """So the comparison above can fail."""
    family = FAMILIES[name]
    original = gguf_files.tiny(family)
    unchanged = replace(family, change=families.same)
    file = gguf_files.write(tmp_path / "model.gguf", unchanged, original)

    assert difference(convert(file, tmp_path / "folder"), original) > 1e-3


# --- what Transformers leaves out ---


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma2", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
        ("gemma3", {"query_pre_attn_scalar": 16, "sliding_window": 4}),
        ("qwen3", {"head_dim": 24}),
        ("qwen2moe", {"shared_expert_intermediate_size": 40, "moe_intermediate_size": 8}),
        ("stablelm", {"use_qkv_bias": False, "use_parallel_residual": True}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("llama", {"max_position_embeddings": 64, "rms_norm_eps": 1e-2}),
    ],
)
def test_settings_that_differ_from_the_usual_are_kept(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    family = FAMILIES[name]
    original = gguf_files.tiny(family, **changes)
    file = gguf_files.write(tmp_path / "model.gguf", family, original)

    assert difference(convert(file, tmp_path / "folder"), original) <= BOUND


def test_layers_that_guess_ahead_are_left_out(tmp_path: Path) -> None:
    family = FAMILIES["qwen35"]
    keys = {"block_count": lambda c: 5, "nextn_predict_layers": lambda c: 1}
    original = gguf_files.tiny(family)
    more = {"blk.4.nextn.eh_proj.weight": np.ones((32, 64)), "blk.4.attn_norm.weight": np.ones(32)}
    file = gguf_files.write(tmp_path / "model.gguf", _with("qwen35", keys), original, more=more)

    made = convert(file, tmp_path / "folder")

    assert made.config.num_hidden_layers == 4
    assert difference(made, original) <= BOUND


def test_linear_scaling_of_positions_is_kept(tmp_path: Path) -> None:
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    original = gguf_files.tiny(FAMILIES["llama"], rope_parameters=scaled)
    keys = {"rope.scaling.type": lambda c: "linear", "rope.scaling.factor": lambda c: 4.0}
    file = gguf_files.write(tmp_path / "model.gguf", _with("llama", keys), original)

    assert difference(convert(file, tmp_path / "folder"), original) <= BOUND


def test_the_scaling_of_llama_3_is_found_in_its_table(tmp_path: Path) -> None:
    scaled = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
    }
    wide = FAMILIES["llama, wide heads"]
    original = gguf_files.tiny(wide, rope_parameters=scaled, head_dim=64)
    plain = 1 / 500_000.0 ** (np.arange(32) / 32)
    table = plain / original.model.rotary_emb.inv_freq.double().numpy()
    file = gguf_files.write(
        tmp_path / "model.gguf", wide, original, more={checks.ROPE_TABLE: table}
    )

    made = convert(file, tmp_path / "folder")

    assert difference(made, original) <= BOUND
    assert made.config.rope_parameters["factor"] == pytest.approx(32.0)
    spoilt = gguf_files.write(
        tmp_path / "spoilt.gguf", wide, original, more={checks.ROPE_TABLE: table**2}
    )
    with pytest.raises(Unsupported, match="rope_freqs"):
        settings.configuration(gguf_header.read(spoilt))


@pytest.mark.parametrize(
    "keys",
    [
        {"rope.scaling.type": lambda c: "yarn"},
        {"attention.something_new": lambda c: 3},
        {"attention.causal": lambda c: False},
        {"logit_scale": lambda c: 0.5},
        {"attention.value_length": lambda c: 4},
        {"expert_gating_func": lambda c: 2},
    ],
)
def test_a_setting_that_is_not_understood_is_named(
    keys: dict[str, Callable[[Any], Any]], tmp_path: Path
) -> None:
    family = _with("llama", keys)
    file = gguf_files.write(tmp_path / "model.gguf", family, gguf_files.tiny(family))

    with pytest.raises(Unsupported, match=next(iter(keys)).replace(".", r"\.")) as caught:
        settings.configuration(gguf_header.read(file))

    assert "answers would differ" in caught.value.what


def test_a_tensor_without_a_place_is_no_silent_loss(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    more = {"blk.0.attn_q_norm.weight": np.ones(8)}
    file = gguf_files.write(tmp_path / "model.gguf", family, gguf_files.tiny(family), more=more)

    with pytest.raises(Unsupported, match="a part would be lost"):
        convert(file, tmp_path / "folder")


def test_a_missing_tensor_is_noticed(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    more = {"blk.0.attn_x.weight": np.ones(32)}  # as many numbers as the one that is left out
    file = gguf_files.write(
        tmp_path / "model.gguf",
        family,
        gguf_files.tiny(family),
        more=more,
        without="blk.0.attn_norm.weight",
    )

    with pytest.raises(VerificationFailed, match="missing keys"):
        convert(file, tmp_path / "folder")


def test_a_part_that_is_missing_is_no_surplus(tmp_path: Path) -> None:
    file, family = tmp_path / "model.gguf", FAMILIES["llama"]
    gguf_files.write(file, family, gguf_files.tiny(family), without="blk.1.ffn_up.weight")

    with pytest.raises(ModelError, match="lacks a part of its model") as caught:
        convert(file, tmp_path / "folder")

    assert caught.value.cure


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    model = gguf_files.tiny(family)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = torch.nan
    file = gguf_files.write(tmp_path / "model.gguf", family, model)

    with pytest.raises(ModelError, match=r"not finite, in lm_head\.weight") as caught:
        convert(file, tmp_path / "folder")

    assert caught.value.cure


def test_no_heads_with_attention_are_named(tmp_path: Path) -> None:
    family = _with("llama", {"attention.head_count": lambda c: 0})
    file = gguf_files.write(tmp_path / "model.gguf", family, gguf_files.tiny(family))

    with pytest.raises(ModelError, match="0 attention heads"):
        checks.about(gguf_header.read(file))


def test_falcons_with_grouped_heads_are_refused(tmp_path: Path) -> None:
    family = FAMILIES[GROUPED]
    file = gguf_files.write(tmp_path / "model.gguf", family, gguf_files.tiny(family))

    with pytest.raises(Unsupported, match=r"attention\.head_count_kv"):
        settings.configuration(gguf_header.read(file))


def test_longrope_is_refused(tmp_path: Path) -> None:
    family = FAMILIES["phi3"]
    more = {"rope_factors_long.weight": np.ones(4), "rope_factors_short.weight": np.ones(4)}
    file = gguf_files.write(tmp_path / "model.gguf", family, gguf_files.tiny(family), more=more)

    with pytest.raises(Unsupported, match="LongRoPE"):
        checks.about(gguf_header.read(file))


@pytest.mark.parametrize("architecture", ["gpt-oss", "gemma", "deci", "t5", "bert", "made-up"])
def test_another_architecture_is_refused_with_those_that_work(
    architecture: str, tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(Unsupported, match=architecture) as caught:
        checks.about(gguf_header.read(tmp_path / "model.gguf"))

    assert all(name in caught.value.cure for name in known.FAMILIES)


def _with(name: str, keys: dict[str, Any]) -> Family:
    return replace(FAMILIES[name], keys={**FAMILIES[name].keys, **keys})
