"""The configuration of the model in a GGUF file, from the file's own settings.

Transformers 5.23 reads about ten settings of a family and takes its own defaults for the rest, so
that widths of heads and experts, caps and scaled positions are lost. Here every setting of a file
is used, or known to say nothing, or the file is refused with its name.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import CONFIG_MAPPING, PretrainedConfig

from backend.catalogue import gguf_families as known
from backend.engine.models import model_limits
from backend.engine.models.gguf.checks import CHOOSE, ROPE_TABLE
from backend.errors import ModelError, Unsupported
from backend.files.foreign_files import open_regular
from backend.files.gguf_header import DAMAGED, Header, Many

USUAL_THETA = 10_000.0
"""llama.cpp's, where a file does not say."""
NAMES: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": (
        "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"
    ),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts",),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "use_parallel_residual": ("use_parallel_residual",),
    "ssm.conv_kernel": ("conv_kernel", "linear_conv_kernel_dim"),
    "ssm.inner_size": ("linear_value_head_dim", "intermediate_size"),
    "ssm.state_size": ("state_size", "linear_key_head_dim"),
    "ssm.time_step_rank": ("time_step_rank", "linear_num_value_heads"),
    "ssm.group_count": ("linear_num_key_heads",),
    "full_attention_interval": ("layer_types",),
    "shortconv.l_cache": ("conv_L_cache",),
}  # fmt: skip
"""A setting of a file, and its names in configurations; the first that one has is meant."""
NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "vocab_size": lambda value: True,  # the table of tokens says it
    "tensor_data_layout": lambda value: True,
    "pooling_type": lambda value: True,  # for vectors of texts, which are not asked for
    "rope.scaling.finetuned": lambda value: True,
    "rope.scaling.original_context_length": lambda value: True,
    "attention.causal": lambda value: value is True,
    "expert_gating_func": lambda value: value in (0, 1),  # none, softmax
    "expert_weights_scale": lambda value: value in (0.0, 1.0),
    "expert_shared_count": lambda value: value in (0, 1),
    "expert_count": lambda value: value == 0,
    "expert_used_count": lambda value: value == 0,
    "feed_forward_length": lambda value: value == 0,
    "attention.head_count": lambda value: value == 0,
    "attention.head_count_kv": lambda value: value == 0,
    "attention.sliding_window": lambda value: value == 0,
    "ssm.dt_b_c_rms": lambda value: value is False,
    "ssm.group_count": lambda value: value == 0,
    "nextn_predict_layers": lambda value: value == 0,
    "logit_scale": lambda value: value in (0.0, 1.0),
    "embedding_scale": lambda value: value in (0.0, 1.0),
    "residual_scale": lambda value: value in (0.0, 1.0),
}
"""Settings that need no place in a configuration, where they have such a value."""
ROPE = ("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scaling.type",
        "rope.scaling.factor", "rope.dimension_sections")  # fmt: skip
TRAITS = {"attention_bias": "attn_q.bias", "use_qkv_bias": "attn_q.bias"}
"""Switches of configurations, and the tensor of each layer that shows them."""
IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def configuration(header: Header) -> PretrainedConfig:
    """Return the configuration; raises Unsupported where a setting has no place in it.

    Raises ModelError where the settings contradict each other or the tensors.
    """
    kind = known.FAMILIES[header.architecture]
    usual, own = CONFIG_MAPPING[kind](), header.own()
    ahead = layers_ahead(header)
    values: dict[str, Any] = dict(known.GIVEN.get(header.architecture, {}))
    for key, value in own.items():
        if key not in (*ROPE, "attention.key_length", "attention.value_length") and not (
            key == "nextn_predict_layers" and ahead
        ):
            values |= _placed(header, usual, key, value)
    values["num_hidden_layers"] -= ahead
    if (width := own.get("attention.key_length")) not in (None, _usual_width(own)):
        values["head_dim"] = width  # not every class has it as a field, but those that use it look
    values |= _shared(header, usual)
    values |= _of_layers(values)
    model_limits.require_plausible(values, header.file.name)
    config = _made(header, kind, values)
    _require_heads(header, config, own)
    return config


def layers_ahead(header: Header) -> int:
    """Return how many of the last layers only guess tokens ahead."""
    said = header.own().get("nextn_predict_layers", 0)
    known_here = header.architecture in known.AHEAD and type(said) is int
    return said if known_here and 0 <= said < header.own()["block_count"] else 0


def _placed(header: Header, usual: Any, key: str, value: Any) -> dict[str, Any]:
    """Return a setting under its name in a configuration."""
    name = next((each for each in NAMES.get(key, ()) if hasattr(usual, each)), None)
    if name is None or (key in ("feed_forward_length", "attention.head_count") and value == 0):
        if key in NEUTRAL and NEUTRAL[key](value):
            return {}
        if key == "context_length":
            return {}  # models without a limit: ALiBi, Mamba
        if key == "attention.head_count_kv" and value == header.own().get("attention.head_count"):
            return {}
        if key == "feed_forward_length" and value == 4 * header.own()["embedding_length"]:
            return {}
        raise _unread(header, key)
    if isinstance(value, list | Many) and key != "attention.head_count_kv":
        raise _unread(header, key)
    return {name: None if name == "sliding_window" and value == 0 else value}


def _shared(header: Header, usual: Any) -> dict[str, Any]:
    """Return what the tensors and the tokenizer say: ties, biases, tokens and positions."""
    names = {tensor.name for tensor in header.tensors}
    words = next(t for t in header.tensors if t.name == "token_embd.weight")
    values: dict[str, Any] = {
        "vocab_size": words.shape[0],
        "tie_word_embeddings": "output.weight" not in names,
    }
    for name, kind in IDS.items():
        values[name] = header.values.get(f"tokenizer.ggml.{kind}_token_id")
    for name, tensor in TRAITS.items():
        if hasattr(usual, name):
            values[name] = f"blk.0.{tensor}" in names
    if hasattr(usual, "use_parallel_residual"):  # StableLM: no second norm where they are parallel
        values["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in names
    if getattr(usual, "rope_parameters", None):
        values["rope_parameters"] = _rope(header, usual.rope_parameters)
    elif ROPE_TABLE in names:
        raise _unread(header, ROPE_TABLE)
    if hasattr(usual, "query_pre_attn_scalar"):
        values["query_pre_attn_scalar"] = _gemma_scale(header)
    return values


def _of_layers(values: dict[str, Any]) -> dict[str, Any]:
    """Return which layers have attention where only some have it.

    LFM2 has a number of key heads for each layer; Qwen 3.5 has attention in every fourth, and the
    width of all value heads together.
    """
    every, heads = values.get("layer_types"), values.get("num_key_value_heads")
    if type(every) is int and every > 0:
        return {
            "linear_value_head_dim": values["linear_value_head_dim"]
            // values["linear_num_value_heads"],
            "layer_types": [
                "linear_attention" if number % every else "full_attention"
                for number in range(1, values["num_hidden_layers"] + 1)
            ],
        }
    if not isinstance(heads, list):
        return {}
    return {
        "num_key_value_heads": max(heads),
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "block_auto_adjust_ff_dim": False,  # the file has the width itself
    }


def _gemma_scale(header: Header) -> int:
    """Return what Gemma's queries are divided by, squared: no file says it, llama.cpp knows it.

    It is the width of a head, but for the models of 27 billion, which llama.cpp recognises by their
    layers too.
    """
    own = header.own()
    if (header.architecture, own["block_count"]) in (("gemma2", 46), ("gemma3", 62)):
        return _usual_width(own)
    return _head_width(own)


def _rope(header: Header, usual: dict[str, Any]) -> dict[str, Any]:
    """Return how positions are encoded; raises Unsupported for scalings that are not tested."""
    own = header.own()
    scaling = own.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise _unread(header, "rope.scaling.type")
    theta = float(own.get("rope.freq_base", USUAL_THETA))
    here: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling == "linear" and own.get("rope.scaling.factor", 1.0) != 1.0:
        here |= {"rope_type": "linear", "factor": float(own["rope.scaling.factor"])}
    table = next((t for t in header.tensors if t.name == ROPE_TABLE), None)
    if table is not None:
        here |= _llama3(header, table.start, table.numel)
    if "partial_rotary_factor" in usual and "rope.dimension_count" in own:
        here["partial_rotary_factor"] = own["rope.dimension_count"] / _head_width(own)
    if "rope.dimension_sections" in own:
        sections = [section for section in own["rope.dimension_sections"] if section]
        here |= {"mrope_section": sections, "mrope_interleaved": True}  # three equal ones for text
    if "sliding_attention" not in usual:
        return here
    inner = dict(usual["sliding_attention"])
    if "rope.freq_base_swa" in own:
        inner["rope_theta"] = float(own["rope.freq_base_swa"])
    return {"sliding_attention": inner, "full_attention": here}


def _head_width(own: dict[str, Any]) -> int:
    return int(own.get("attention.key_length") or _usual_width(own))


def _usual_width(own: dict[str, Any]) -> int:
    """Return the width of a head where the heads share the model's width; 0 without heads."""
    heads = own.get("attention.head_count")
    return int(own["embedding_length"] // heads) if type(heads) is int and heads > 0 else 0


def _llama3(header: Header, start: int, count: int) -> dict[str, Any]:
    """Return the scaling of Llama 3.1 and later, of which a file has only the table it makes.

    Its four numbers are the same in all of these models but for the factor, which is the table's
    last entry; so the table is made again and compared.
    """
    with open_regular(header.file, header.file.name) as stream:
        stream.seek(start)
        table = np.frombuffer(stream.read(4 * count), dtype="<f4").astype(np.float64)
    theta = float(header.own().get("rope.freq_base", USUAL_THETA))
    factor = float(table[-1])
    waves = 2 * np.pi * theta ** (np.arange(count) / count)
    smooth = (8192 / waves - 1.0) / (4.0 - 1.0)
    between = 1 / ((1 - smooth) / factor + smooth)
    made = np.where(waves < 8192 / 4.0, 1.0, np.where(waves > 8192 / 1.0, factor, between))
    if not np.allclose(table, made, rtol=1e-4):
        raise _unread(header, ROPE_TABLE)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _made(header: Header, kind: str, values: dict[str, Any]) -> PretrainedConfig:
    """Build the configuration, and see that it took every value."""
    try:
        config: PretrainedConfig = CONFIG_MAPPING[kind](**values)
    except Exception as error:
        raise ModelError(
            f"{header.file.name} cannot be used: its settings do not fit each other.",
            cure=DAMAGED,
            details=str(error),
        ) from error
    lost = [name for name, value in values.items() if getattr(config, name, None) != value]
    if lost:
        raise _unread(header, lost[0])
    model_limits.require_sizes(config, header.file.name)
    return config


def _require_heads(header: Header, config: Any, own: dict[str, Any]) -> None:
    """Raise where heads, or the part of them that is rotated, have another width than it says."""
    if getattr(config, "multi_query", False) and own.get("attention.head_count_kv", 1) != 1:
        raise _unread(header, "attention.head_count_kv")  # Falcon's larger models
    width = getattr(config, "head_dim", None) or _usual_width(own)
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        said = own.get(key)
        rope = getattr(config, "rope_parameters", None) or {}
        if key == "rope.dimension_count" and "partial_rotary_factor" in rope:
            continue
        if said is not None and width and said != width:
            raise _unread(header, key)


def _unread(header: Header, key: str) -> Unsupported:
    value = header.own().get(key)
    shown = "" if value is None or isinstance(value, list) else f" ({str(value)[:40]})"
    return Unsupported(
        f"{header.file.name} has the setting {key[:80]}{shown}, which is not understood here, so "
        "its answers would differ.",
        cure=CHOOSE,
    )
