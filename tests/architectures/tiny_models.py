"""Tiny random models, two layers of 32 numbers, made from each type's own configuration class.

Most types need no more than smaller sizes under the names that configurations use. Where sizes have
to fit each other in another way, the type has an entry in `SPECIAL`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from backend.settings import STARTER

TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
"""Every type that Transformers lists for continuing text."""
VOCABULARY, POSITIONS = 4096, 256
_HIDDEN, _INNER, _LAYERS, _HEADS, _HEAD = 32, 48, 2, 4, 8
_NAMES: list[tuple[int, str]] = [
    (VOCABULARY, "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size"),
    (
        POSITIONS,
        "max_position_embeddings n_positions n_ctx max_seq_len context_length "
        "original_max_position_embeddings max_target_positions max_source_positions",
    ),
    (
        _HIDDEN,
        "hidden_size n_embd d_model emb_dim embedding_size dim embedding_dim "
        "word_embed_proj_dim attention_hidden_size lru_width backbone_hidden_size "
        "input_embedding_size output_embedding_size router_hidden_size global_hidden_size "
        "mamba_d_ssm dim_model_base projection_dim",
    ),
    (
        _INNER,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner d_inner dff dim_ff "
        "dense_intermediate_size feed_forward_size intermediate_size_mlp ffn_hidden_size "
        "prefix_dense_intermediate_size",
    ),
    (
        16,
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
        "shared_experts_intermediate_size expert_ffn_hidden_size state_size mamba_d_state "
        "ssm_state_size kv_lora_rank q_lora_rank moe_shared_expert_intermediate_size "
        "index_head_dim hidden_size_per_layer_input num_centroids adapter_rank laurel_rank "
        "o_lora_rank time_step_rank mamba_dt_rank mamba_chunk_size chunk_size "
        "attention_window_size keep_window_size index_topk hc_lowrank gated_norm_rank",
    ),
    (
        _LAYERS,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
        "num_blocks num_decoder_layers num_encoder_layers",
    ),
    (
        _HEADS,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads "
        "encoder_attention_heads attention_heads num_decoder_attention_heads linear_num_heads "
        "num_encoder_attention_heads linear_num_value_heads mamba_n_heads mamba_num_heads "
        "swa_num_attention_heads index_n_heads num_experts num_local_experts n_routed_experts "
        "moe_num_experts linear_num_key_heads indexer_n_heads n_mamba_heads",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads num_experts_per_tok moe_topk moe_k top_k_experts "
        "swa_num_key_value_heads zero_expert_num conv_kernel_size indexer_kv_heads",
    ),
    (
        1,
        "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group "
        "first_k_dense_replace num_dense_layers mamba_n_groups n_groups mamba_ngroups "
        "num_mem_blocks moe_layer_start_index",
    ),
    (
        _HEAD,
        "head_dim v_head_dim qk_nope_head_dim linear_key_head_dim linear_value_head_dim "
        "attention_head_dim d_head dim_head attention_head_size linear_head_dim swa_head_dim "
        "kv_channels indexer_head_dim sliding_window sliding_window_size attention_chunk_size "
        "window_size local_attention query_pre_attn_scalar",
    ),
    (8, "qk_rope_head_dim"),
    (4, "rotary_dim"),
]
SIZES = {name: value for value, names in _NAMES for name in names.split()}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LINEAR, _FULL = "linear_attention", "full_attention"
_MIXED = {"layer_types": [_LINEAR, _FULL]}
_INDEXED = {"indexer_budget": 16, "indexer_compress_ratio": 2, "indexer_kv_heads": 1}
_HYBRID = {"layer_types": [_LINEAR, "hybrid", _LINEAR, "hybrid"], "num_hidden_layers": 4}
_SHARED_CACHE = {"num_kv_shared_layers": 0}
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16},
    "cohere_compass_text": {
        "rope_parameters": {_FULL: {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {"o_groups": 2},
    "dots3_note": {"text_config": {"num_key_value_heads": _HEADS}},
    "dots3_note_text": {"num_key_value_heads": _HEADS},
    "gemma3n": {"text_config": _SHARED_CACHE},
    "gemma3n_text": _SHARED_CACHE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_d_head": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _MIXED,
    "lfm2_moe": {"layer_types": ["conv", _FULL]},
    "lfm3": {"layer_types": ["conv", _FULL]},
    "mamba2": {"head_dim": 16},
    "qwen3_5": {"text_config": _MIXED},
    "qwen3_5_moe": {"text_config": _MIXED},
    "qwen3_5_moe_text": _MIXED,
    "qwen3_5_text": _MIXED,
    "qwen3_next": _MIXED,
    "recurrent_gemma": {"block_types": ("recurrent", "attention")},
    "qwen4_exp": {"text_config": {**_INDEXED, **_MIXED}},
    "qwen4_exp_text": {**_INDEXED, **_MIXED},
    "reformer": {"attn_layers": ("local", "local"), "axial_pos_embds": False},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
    "xlstm": {"num_heads": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**_HYBRID, "attention_head_dim": 16, "n_mamba_heads": 2},
    "zamba2": {**_HYBRID, "attention_head_dim": 16, "n_mamba_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a type needs beyond small sizes; a dictionary is added to the part of that name."""


def tiny_config(kind: str, **changes: Any) -> PreTrainedConfig:
    """Return a small configuration of a type; `changes` win over everything else."""
    known = CONFIG_MAPPING[kind]
    values = _sizes(known)
    for name, value in {**SPECIAL.get(kind, {}), **changes}.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return known(**values)


def tiny_model(kind: str, **changes: Any) -> PreTrainedModel:
    """Build a random model of a type, in memory, its weights large enough to matter."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.is_floating_point():
                parameter.normal_(std=0.1)
    return model.eval()


def write_model(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a tiny model of a type with the starter's tokenizer."""
    tiny_model(kind, **changes).save_pretrained(folder)
    AutoTokenizer.from_pretrained(STARTER / "model").save_pretrained(folder)
    return folder


def _sizes(known: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the small sizes under the names that a configuration class has, parts included."""
    names = {field.name for field in dataclasses.fields(known)}
    values: dict[str, Any] = {name: size for name, size in SIZES.items() if name in names}
    values |= {name: token for name, token in _TOKENS.items() if name in names}
    if "is_decoder" in names:  # otherwise types such as BERT read text in both directions
        values["is_decoder"] = True
    if "kv_lora_rank" in names:  # latent attention has keys and values for each head
        values["num_key_value_heads"] = _HEADS
    for part, inner in _parts(known).items():
        values[part] = {**_sizes(inner), "model_type": inner.model_type}
    return values


def _parts(known: type[PreTrainedConfig]) -> dict[str, type[PreTrainedConfig]]:
    """Return the configuration classes of a model's parts, as the default has them."""
    if not getattr(known, "sub_configs", {}):
        return {}
    usual = known()
    found = {name: getattr(usual, name, None) for name in known.sub_configs}
    return {k: type(v) for k, v in found.items() if isinstance(v, PreTrainedConfig)}
