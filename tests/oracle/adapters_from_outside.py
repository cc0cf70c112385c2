"""What people bring along: bases, adapters of every kind that is taken, and some that are not.

All are written by plain Transformers and PEFT; nothing here is ours.
"""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from backend.settings import STARTER

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TAKEN: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "attention": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "o_proj"]},
    "wide": {"r": 8, "lora_alpha": 4, "target_modules": "all-linear"},
    "half": {"r": 2, "lora_alpha": 4, "target_modules": ["k_proj", "up_proj"]},
    "one layer": {"r": 4, "target_modules": ["v_proj"], "layers_to_transform": [1]},
    "expression": {"r": 4, "target_modules": r".*layers\.0\..*\.(q|gate)_proj"},
    "rslora": {"r": 8, "use_rslora": True, "target_modules": ["q_proj", "gate_proj"]},
    "dora": {"r": 4, "use_dora": True, "target_modules": ["q_proj", "o_proj", "up_proj"]},
    "dora2": {"r": 2, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 6},
        "alpha_pattern": {"k_proj": 32},
    },
    "rslora patterns": {
        "r": 4,
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 8},
        "alpha_pattern": {"q_proj": 3},
    },
    "dora patterns": {
        "r": 4,
        "use_dora": True,
        "target_modules": ["v_proj", "down_proj"],
        "rank_pattern": {"down_proj": 2},
    },
    "pissa": {"r": 4, "init_lora_weights": "pissa", "target_modules": ["q_proj", "v_proj"]},
    "olora": {"r": 4, "init_lora_weights": "olora", "target_modules": ["q_proj", "up_proj"]},
}
REWRITES_BASE = ("pissa", "olora")
_PLAIN = TAKEN["lora"]
REFUSED: dict[str, dict[str, Any]] = {
    "head": {**_PLAIN, "modules_to_save": ["lm_head"]},
    "tokens": {**_PLAIN, "trainable_token_indices": [3, 4]},
    "bias": {**_PLAIN, "bias": "all"},
    "random start": {**_PLAIN, "init_lora_weights": "pissa_niter_2"},
}


class Sources(NamedTuple):
    """A base on disk with the adapter folders made for it, and a data set to learn from."""

    base: Path
    taken: dict[str, Path]
    refused: dict[str, Path]
    data: Path


def write_sources(folder: Path, *, tied: bool) -> Sources:
    """Write a base and one adapter of each kind."""
    transformers_logging.disable_progress_bar()
    base = write_base(folder / ("tied" if tied else "untied"), tied=tied)
    taken = {
        name: write_adapter(folder / name, base, config, seed=seed, half=name == "half")
        for seed, (name, config) in enumerate(TAKEN.items())
    }
    refused = {
        name: write_adapter(folder / f"bad {name}", base, config, seed=50)
        for name, config in REFUSED.items()
    }
    refused |= write_broken(folder, taken["lora"])
    return Sources(base, taken, refused, write_data(folder / "data.jsonl"))


def write_base(folder: Path, *, tied: bool) -> Path:
    """Write a random Llama of two layers with the starter's tokenizer."""
    torch.manual_seed(int(tied))
    tokenizer = AutoTokenizer.from_pretrained(STARTER / "model")
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_adapter(
    folder: Path, base: Path, config: dict[str, Any], *, seed: int, half: bool = False
) -> Path:
    """Write an adapter as PEFT does, every weight moved as training would."""
    torch.manual_seed(100 + seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is refused here, PEFT advises against too
        peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            noise = 0.1 * torch.randn_like(parameter)
            if "magnitude" in name:
                parameter.mul_(1 + noise)
            elif "lora_" in name:
                parameter.add_(noise)
    peft.save_pretrained(folder, save_embedding_layers=False)
    if half:
        save({k: v.bfloat16() for k, v in load_file(folder / WEIGHTS).items()}, folder)
    return folder


def write_broken(folder: Path, good: Path) -> dict[str, Path]:
    """Write folders that look like a good adapter and are not, in ways that PEFT says nothing of.

    `tests/engine` has many more of them; here they come in the middle of everything else.
    """
    names = ("not finite", "hidden weights", "pickle", "other shape", "hanging", "incomplete")
    broken = {name: copy(good, folder / f"bad {name}") for name in names}
    tensors = load_file(good / WEIGHTS)
    first = next(iter(tensors))
    save({**tensors, first: tensors[first] * float("nan")}, broken["not finite"])
    hidden = {"base_model.model.lm_head.weight": torch.zeros(4, 48)}
    save({**tensors, **hidden}, broken["hidden weights"])
    (broken["pickle"] / WEIGHTS).rename(broken["pickle"] / "adapter_model.bin")
    save({**tensors, first: tensors[first][:, :-1].contiguous()}, broken["other shape"])
    save({k: v for k, v in tensors.items() if ".layers.1." not in k}, broken["incomplete"])
    path = broken["hanging"] / CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "rank_pattern": {"(([a-z0-9_.])+)+!": 2}}))
    return broken


def copy(source: Path, destination: Path) -> Path:
    shutil.copytree(source, destination)
    return destination


def save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def write_data(path: Path) -> Path:
    """Write a data set of a few short conversations."""
    questions = ("Who are you?", "Where is the cat?", "What is red?", "How are you today?")
    rows = [
        {
            "messages": [
                {"role": "user", "content": each},
                {"role": "assistant", "content": "A fox."},
            ]
        }
        for each in questions
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path
