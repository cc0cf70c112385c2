"""The oracle: what plain PEFT says of adapters on a base that is new for each question."""

import copy
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ("The cat is on the mat.", "Hello! Where are you going today?", "1 + 1 = 2")
Parts = Sequence[tuple[Path, float]]
"""Adapter folders with their strengths."""


def scores(base: Path, parts: Parts) -> list[float]:
    """Score the texts on a fresh base with these adapters active, in this order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return score_texts(wrapped(copy.deepcopy(loaded(base)), parts), base)


@lru_cache(maxsize=8)
def loaded(base: Path) -> Any:
    """Load a base as plain Transformers does; only copies of it are ever used."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@lru_cache(maxsize=8)
def tokenizer_of(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def wrapped(model: Any, parts: Parts) -> Any:
    """Put adapters on a fresh model and activate them all."""
    if not parts:
        return model
    names = [f"adapter_{number}" for number in range(len(parts))]
    options = {"torch_device": "cpu"}
    peft = PeftModel.from_pretrained(model, str(parts[0][0]), adapter_name=names[0], **options)
    for name, (folder, _) in zip(names[1:], parts[1:], strict=True):
        peft.load_adapter(str(folder), adapter_name=name, **options)
    peft.base_model.set_adapter(names)
    layers = [module for module in peft.modules() if isinstance(module, LoraLayer)]
    for name, (_, strength) in zip(names, parts, strict=True):
        if strength != 1.0:
            for layer in layers:
                layer.set_scale(name, strength)
    return peft.eval()


def score_texts(model: Any, base: Path) -> list[float]:
    """Return each text's total log-probability."""
    tokenizer = tokenizer_of(base)
    found = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            chances = model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        found.append(chances.gather(1, ids[0, 1:, None]).sum().item())
    return found


def distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the largest |left - right| / max(1, |right|)."""
    pairs = zip(left, right, strict=True)
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)
