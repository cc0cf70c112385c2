"""Tiny random models with a text part and parts for pictures or sound, as bases on disk."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Llama4ForConditionalGeneration,
    MllamaForConditionalGeneration,
    Qwen3_5ForConditionalGeneration,
)
from transformers.modeling_utils import PreTrainedModel

from tests.engine.tiny import STARTER

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "vocab_size": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TOWER = "the vision tower (2 layers, 15 K parameters)"


def gemma3(layers: int = 3) -> PreTrainedModel:
    """Build a Gemma 3 for pictures and text, the common kind of Gemma 3."""
    text = {**_TEXT, "num_hidden_layers": layers, "sliding_window": 8, "sliding_window_pattern": 2}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=_VISION, mm_tokens_per_image=4
    )
    return _random(AutoModelForCausalLM.from_config(config))


def gemma4() -> PreTrainedModel:
    """Build a Gemma 4 for pictures and text."""
    text = {
        **_TEXT,
        "sliding_window": 8,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 4096,
        "num_kv_shared_layers": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
        "num_key_value_heads": 2,
    }
    config = AutoConfig.for_model(
        "gemma4", text_config=text, vision_config=vision, audio_config=None
    )
    return _random(AutoModelForCausalLM.from_config(config))


def llama4() -> PreTrainedModel:
    """Build a Llama 4 for pictures and text, whose class for causal LM is of text alone."""
    text = {
        **_TEXT,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "moe_layers": [1],
        "pad_token_id": 0,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
    }
    vision = {
        **_VISION,
        "vision_output_dim": 16,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
        "intermediate_size": 64,
        "pixel_shuffle_ratio": 0.5,
        "image_size": 28,
    }
    config = AutoConfig.for_model("llama4", text_config=text, vision_config=vision)
    return _random(Llama4ForConditionalGeneration(config))


def qwen3_5() -> PreTrainedModel:
    """Build a Qwen 3.5 for pictures and text, whose class for causal LM is of text alone."""
    text = {
        **_TEXT,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 14,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
    }
    config = AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision)
    return _random(Qwen3_5ForConditionalGeneration(config))


def mllama() -> PreTrainedModel:
    """Build a Llama 3.2 for pictures and text, whose class for causal LM is of text alone."""
    text = {**_TEXT, "cross_attention_layers": [1]}
    vision = {
        **_VISION,
        "attention_heads": 2,
        "num_global_layers": 1,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 32,
        "supported_aspect_ratios": [[1, 1]],
        "max_num_tiles": 1,
    }
    config = AutoConfig.for_model("mllama", text_config=text, vision_config=vision)
    return _random(MllamaForConditionalGeneration(config))


def got_ocr2() -> PreTrainedModel:
    """Build a reader of pictures whose language model is a Qwen 2."""
    vision = {
        **_VISION,
        "output_channels": 16,
        "mlp_dim": 24,
        "window_size": 2,
        "global_attn_indexes": [1],
        "image_size": 64,
        "patch_size": 16,
    }
    config = AutoConfig.for_model(
        "got_ocr2",
        text_config={**_TEXT, "model_type": "qwen2"},
        vision_config=vision,
        image_seq_length=4,
    )
    return _random(AutoModelForCausalLM.from_config(config))


def fuyu() -> PreTrainedModel:
    """Build a Fuyu, whose pictures pass through one layer."""
    config = AutoConfig.for_model(
        "fuyu",
        text_config={**_TEXT, "model_type": "persimmon"},
        **_TEXT,
        patch_size=4,
        num_channels=3,
    )
    return _random(AutoModelForCausalLM.from_config(config))


def write(folder: Path, model: PreTrainedModel) -> Path:
    """Write a model with the starter's tokenizer, and the files that its processor needs."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(STARTER).save_pretrained(folder)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).write_text('{"processor_class": "Gemma3Processor"}\n', encoding="utf-8")
    return folder


def _random(model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model.eval()
