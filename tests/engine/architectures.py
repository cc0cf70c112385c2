"""Tiny random models of the architectures that people have, in memory and as bases on disk."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel

from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.models import loading
from tests.engine.tiny import STARTER

HIDDEN, HEADS, LAYERS = 32, 4, 2
_USUAL: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_GPT2: dict[str, Any] = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gptj": {**_GPT2, "rotary_dim": 4},
    "codegen": {**_GPT2, "rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": HIDDEN,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 128,
        "window_size": 8,
    },
    "gpt_neox": {k: v for k, v in _USUAL.items() if k != "num_key_value_heads"},
    "opt": {
        **{k: v for k, v in _USUAL.items() if k != "intermediate_size"},
        "ffn_dim": 48,
        "word_embed_proj_dim": HIDDEN,
    },
    "bloom": {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
    "falcon": {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "alibi": False,
    },
    "mpt": {"d_model": HIDDEN, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 128},
    "rwkv": {
        "hidden_size": HIDDEN,
        "attention_hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "context_length": 128,
    },
    "lfm2": {**_USUAL, "full_attn_idxs": [1], "layer_types": ["conv", "full_attention"]},
    "phi": _USUAL,
    "llama": _USUAL,
    "mistral": {**_USUAL, "sliding_window": 8, "head_dim": 8},
    "qwen2": _USUAL,
    "qwen3": {**_USUAL, "head_dim": 8},
    "gemma": {**_USUAL, "head_dim": 8},
    "gemma2": {**_USUAL, "head_dim": 8, "sliding_window": 8},
    "gemma3_text": {**_USUAL, "head_dim": 8, "sliding_window": 8},
    "mixtral": {**_USUAL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_USUAL, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**_USUAL, **_EXPERTS, "head_dim": 8},
}


def tiny(kind: str, **changes: Any) -> PreTrainedModel:
    """Build a random model of an architecture, its weights large enough to matter."""
    torch.manual_seed(0)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    values = {**SETTINGS[kind], **tokens, "vocab_size": 4096, **changes}
    config = AutoConfig.for_model(kind, **values)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.name_or_path = kind
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model.eval()


def write(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a tiny model with the starter's tokenizer."""
    tiny(kind, **changes).save_pretrained(folder)
    AutoTokenizer.from_pretrained(STARTER).save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> loading.Base:
    """Load a base as the app does."""
    request = rq.LoadModel(source=str(folder), **options)
    return loading.load(request, Control(0, lambda *_: None))
