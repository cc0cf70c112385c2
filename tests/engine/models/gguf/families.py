"""Tiny random models of each family, written as GGUF files in llama.cpp's own way.

What llama.cpp's converter changes in the weights of a family is repeated here, independently of
what Transformers undoes: rows of queries and keys are interleaved, norms are stored plus one,
matrices are transposed, experts are stacked.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

Weights = Iterator[tuple[str, torch.Tensor]]
VOCABULARY = 300
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
USUAL = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}


def same(name: str, tensor: torch.Tensor, config: Any) -> Weights:
    """Write a tensor as it is."""
    yield name, tensor


def interleaved(name: str, tensor: torch.Tensor, config: Any) -> Weights:
    """Interleave the halves of each head's rows, for llama's own kind of rotation."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if f".{part}." in name:
            half = tensor.shape[0] // count // 2
            tensor = tensor.reshape(count, 2, half, *tensor.shape[1:]).swapaxes(1, 2)
            tensor = tensor.reshape(count * half * 2, *tensor.shape[3:])
    yield name, tensor


def plus_one(name: str, tensor: torch.Tensor, config: Any) -> Weights:
    """Store the weights of norms plus one."""
    yield name, tensor + 1 if name.endswith("norm.weight") else tensor


def experts(name: str, tensor: torch.Tensor, config: Any) -> Weights:
    """Store the gates and the inputs of all experts as tensors of their own."""
    if name.endswith("experts.gate_up_proj"):
        gate, up = tensor.chunk(2, dim=1)
        yield name.replace("gate_up_proj", "gate_proj.weight"), gate
        yield name.replace("gate_up_proj", "up_proj.weight"), up
    elif name.endswith("experts.down_proj"):
        yield f"{name}.weight", tensor
    else:
        yield name, tensor.squeeze(0) if "shared_expert_gate" in name else tensor


def transposed(name: str, tensor: torch.Tensor, config: Any) -> Weights:
    """Transpose GPT-2's matrices, which Transformers stores the other way round."""
    yield name, tensor.T if ".c_" in name and tensor.ndim == 2 else tensor


def by_part(name: str, tensor: torch.Tensor, config: Any) -> Weights:
    """Put the queries, keys and values of all heads one after the other (BLOOM)."""
    if "query_key_value" in name:
        heads = config.n_head
        tensor = tensor.reshape(heads, 3, -1, *tensor.shape[1:]).swapaxes(0, 1)
        tensor = tensor.reshape(-1, *tensor.shape[3:])
    yield name, tensor


def by_kind(name: str, tensor: torch.Tensor, config: Any) -> Weights:
    """Put queries, keys and values one after the other (Falcon)."""
    if "query_key_value" in name:
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
        each = config.num_attention_heads // groups + 2
        parts = tensor.reshape(groups, each, -1, *tensor.shape[1:])
        cut = [parts[:, :-2], parts[:, -2:-1], parts[:, -1:]]
        tensor = torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in cut])
    yield name, tensor


def state_space(name: str, tensor: torch.Tensor, config: Any) -> Weights:
    """Store Mamba's decay as it is applied, and its convolution without its empty dimension."""
    changed = -tensor.exp() if name.endswith("A_log") else tensor
    yield name, changed.squeeze(1) if "conv1d.weight" in name else changed


def squeezed(name: str, tensor: torch.Tensor, config: Any) -> Weights:
    """Store a short convolution without its empty dimension."""
    yield name, tensor.squeeze(1) if "conv.conv.weight" in name else tensor


def tiled(name: str, tensor: torch.Tensor, config: Any) -> Weights:
    """Put the value heads of all groups side by side (Qwen 3.5); norms are stored plus one."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads // 2
    own = name.replace("dt_bias", "dt_proj.bias")
    if name.endswith("norm.weight") and "linear_attn" not in name:
        tensor = tensor + 1
    if name.endswith("A_log"):
        tensor = -tensor.exp()
    if "conv1d" in name:
        tensor = tensor.squeeze(1)
    if "out_proj" in name:
        heads = tensor.reshape(tensor.shape[0], keys, values, -1)
        tensor = heads.swapaxes(1, 2).reshape(tensor.shape)
    elif "linear_attn" in name and "norm" not in name:
        before = 2 * keys * config.linear_key_head_dim
        kept = before if "in_proj_qkv" in name or "conv1d" in name else 0
        heads = tensor[kept:].reshape(keys, values, -1, *tensor.shape[1:])
        last = heads.swapaxes(0, 1).reshape(tensor.shape[0] - kept, *tensor.shape[1:])
        tensor = torch.cat([tensor[:kept], last])
    yield from experts(own, tensor, config)


@dataclass(frozen=True)
class Family:
    """How a family is written: its configuration, its keys and what happens to its weights."""

    architecture: str
    kind: str
    change: Callable[[str, torch.Tensor, Any], Weights] = same
    config: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    """The name of a setting in the configuration, or a function of it."""
    rope: bool = True


def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def theta(config: Any) -> float:
    return float(config.rope_parameters["rope_theta"])


HEADS = {"attention.key_length": head_size, "attention.value_length": head_size}
EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROTATED = {"rope.freq_base": theta, "rope.dimension_count": head_size}
PART = {
    "rope.freq_base": theta,
    "rope.dimension_count": lambda config: int(
        config.rope_parameters["partial_rotary_factor"] * head_size(config)
    ),
}
SOFTCAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
}
NORM = {"attention.layer_norm_epsilon": "layer_norm_eps"}
TYPES = "full_attention", "sliding_attention"

HYBRID = {
    "head_dim": 32,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "num_hidden_layers": 4,
    "full_attention_interval": 2,
}
HYBRID_KEYS = {
    **RMS,
    **HEADS,
    **PART,
    "rope.dimension_sections": lambda c: [2, 1, 1, 0],
    "full_attention_interval": lambda c: 2,
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "ssm.inner_size": lambda c: c.linear_num_value_heads * c.linear_value_head_dim,
}

FAMILIES = {
    "qwen35": Family("qwen35", "qwen3_5_text", tiled, HYBRID, HYBRID_KEYS),
    "qwen35moe": Family(
        "qwen35moe",
        "qwen3_5_moe_text",
        tiled,
        {**HYBRID, **MOE, "shared_expert_intermediate_size": 24},
        {
            **HYBRID_KEYS,
            **EXPERTS,
            "feed_forward_length": None,
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
    ),
    "llama": Family(
        "llama", "llama", interleaved, {}, {**RMS, **ROTATED, "vocab_size": "vocab_size"}
    ),
    "llama, tied": Family(
        "llama", "llama", interleaved, {"tie_word_embeddings": True}, {**RMS, **ROTATED}
    ),
    "llama, wide heads": Family(
        "llama", "llama", interleaved, {"head_dim": 16}, {**RMS, **ROTATED, **HEADS}
    ),
    "mistral": Family(
        "llama", "mistral", interleaved, {"sliding_window": None}, {**RMS, **ROTATED}
    ),
    "qwen2": Family("qwen2", "qwen2", same, {"rope_theta": 1e6}, {**RMS, **ROTATED}),
    "qwen3": Family("qwen3", "qwen3", same, {"head_dim": 16}, {**RMS, **ROTATED, **HEADS}),
    "qwen2moe": Family(
        "qwen2moe",
        "qwen2_moe",
        experts,
        {**MOE, "shared_expert_intermediate_size": 24},
        {
            **RMS,
            **ROTATED,
            **EXPERTS,
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
    ),
    "qwen3moe": Family(
        "qwen3moe",
        "qwen3_moe",
        experts,
        {**MOE, "head_dim": 16, "norm_topk_prob": True},
        {**RMS, **ROTATED, **HEADS, **EXPERTS},
    ),
    "gemma2": Family(
        "gemma2",
        "gemma2",
        plus_one,
        {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
        },
        {**RMS, **HEADS, **SOFTCAPS},
    ),
    "gemma3": Family(
        "gemma3",
        "gemma3_text",
        plus_one,
        {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
        {
            **RMS,
            **HEADS,
            "rope.freq_base": lambda c: float(c.rope_parameters["full_attention"]["rope_theta"]),
            "attention.sliding_window": "sliding_window",
        },
    ),
    "phi3": Family(
        "phi3",
        "phi3",
        same,
        {"sliding_window": 8},
        {
            **RMS,
            **ROTATED,
            "attention.sliding_window": "sliding_window",
            "rope.scaling.original_context_length": "max_position_embeddings",
        },
    ),
    "starcoder2": Family(
        "starcoder2",
        "starcoder2",
        same,
        {"sliding_window": None},
        {"attention.layer_norm_epsilon": "norm_epsilon", **ROTATED},
    ),
    "falcon": Family(
        "falcon",
        "falcon",
        by_kind,
        {"multi_query": True, "new_decoder_architecture": False, "ffn_hidden_size": 128},
        {
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "rope.freq_base": theta,
            "attention.head_count_kv": lambda c: 1,
            "feed_forward_length": "ffn_hidden_size",
        },
    ),
    "falcon, grouped": Family(
        "falcon",
        "falcon",
        by_kind,
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 128},
        {
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "rope.freq_base": theta,
            "attention.head_count_kv": "num_kv_heads",
            "feed_forward_length": "ffn_hidden_size",
        },
    ),
    "gpt2": Family(
        "gpt2",
        "gpt2",
        transposed,
        {"n_positions": 128},
        {
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "context_length": "n_positions",
            "feed_forward_length": lambda c: 4 * c.n_embd,
            "attention.head_count_kv": None,
        },
    ),
    "stablelm": Family(
        "stablelm",
        "stablelm",
        same,
        {"use_qkv_bias": True},
        {**NORM, "use_parallel_residual": "use_parallel_residual", **PART},
    ),
    "mamba": Family(
        "mamba",
        "mamba",
        state_space,
        {"state_size": 4, "intermediate_size": 64, "time_step_rank": 2},
        {
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
            "ssm.conv_kernel": "conv_kernel",
            "ssm.inner_size": "intermediate_size",
            "ssm.state_size": "state_size",
            "ssm.time_step_rank": "time_step_rank",
            "ssm.dt_b_c_rms": lambda c: False,
            "attention.head_count": lambda c: 0,
            "feed_forward_length": lambda c: 0,
            "context_length": lambda c: 2**20,
            "attention.head_count_kv": None,
        },
    ),
    "nemotron": Family(
        "nemotron",
        "nemotron",
        plus_one,
        {},
        {
            "attention.layer_norm_epsilon": "norm_eps",
            "vocab_size": "vocab_size",
            "rope.scaling.type": lambda c: "none",
            **PART,
        },
    ),
    "bloom": Family(
        "bloom",
        "bloom",
        by_part,
        {"n_layer": 2, "n_head": 4},
        {
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "block_count": "n_layer",
            "attention.head_count": "n_head",
            "attention.head_count_kv": "n_head",
            "context_length": lambda c: 128,
            "feed_forward_length": lambda c: 4 * c.hidden_size,
        },
    ),
    "lfm2": Family(
        "lfm2",
        "lfm2",
        squeezed,
        {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
        },
        {
            "attention.layer_norm_rms_epsilon": "norm_eps",
            "rope.freq_base": theta,
            "shortconv.l_cache": "conv_L_cache",
            "vocab_size": "vocab_size",
            "attention.head_count_kv": lambda c: [
                c.num_key_value_heads if t == "full_attention" else 0 for t in c.layer_types
            ],
        },
    ),
}
