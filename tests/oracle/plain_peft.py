"""A process of its own that says what plain PEFT makes of adapters, on a new base each time.

`python -m tests.oracle.plain_peft` answers questions as JSON lines until its input ends; whoever
asks it uses `tests.oracle.oracle`. It imports nothing of the workbench, so that nothing the
workbench leaves behind in its process (patches, autocast, settings of torch) can reach it.
"""

import copy
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tests.oracle.texts import TEXTS

Parts = Sequence[tuple[str, float]]
"""Adapter folders with their strengths."""


def scores(base: str, parts: Parts) -> list[float]:
    """Score the texts on a fresh base with these adapters active, in this order."""
    return score_texts(wrapped(fresh(base), parts), base)


def blended(base: str, parts: Parts, options: dict[str, Any], seed: int) -> list[float]:
    """Score the texts with the blend that PEFT's own `add_weighted_adapter` makes."""
    model = wrapped(fresh(base), [(folder, 1.0) for folder, _ in parts])
    weights = [weight for _, weight in parts]
    torch.manual_seed(seed)
    model.base_model.add_weighted_adapter(_names(parts), weights, "blend", **options)
    model.base_model.set_adapter("blend")
    return score_texts(model.eval(), base)


def compressed(base: str, parts: Parts, rank: int) -> list[float]:
    """Score the texts with the closest change of a rank to what adapters do, layer by layer.

    The change is what a merge in double precision makes of the weights, whatever the adapters are.
    """
    plain, merged = fresh(base), wrapped(fresh(base), parts).double().merge_and_unload()
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            after = merged.get_parameter(name)
            change = after - weight.double()
            if weight.ndim == 2 and change.any():
                left, values, right = torch.linalg.svd(change, full_matrices=False)
                weight += (left[:, :rank] * values[:rank]) @ right[:rank]
    return score_texts(plain, base)


def modules() -> list[str]:
    """Return what this process has imported."""
    return sorted(sys.modules)


def fresh(base: str) -> Any:
    """Return a base that nobody has used yet."""
    return copy.deepcopy(_loaded(base))


@lru_cache(maxsize=8)
def _loaded(base: str) -> Any:
    """Load a base as plain Transformers does; only copies of it are ever used."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@lru_cache(maxsize=8)
def _tokenizer(base: str) -> Any:
    return AutoTokenizer.from_pretrained(base)


def wrapped(model: Any, parts: Parts) -> Any:
    """Put adapters on a fresh model and activate them all."""
    if not parts:
        return model
    names = _names(parts)
    options = {"torch_device": "cpu"}
    peft = PeftModel.from_pretrained(model, parts[0][0], adapter_name=names[0], **options)
    for name, (folder, _) in zip(names[1:], parts[1:], strict=True):
        peft.load_adapter(folder, adapter_name=name, **options)
    peft.base_model.set_adapter(names)
    layers = [module for module in peft.modules() if isinstance(module, LoraLayer)]
    for name, (_, strength) in zip(names, parts, strict=True):
        if strength != 1.0:
            for layer in layers:
                layer.set_scale(name, strength)
    return peft.eval()


def _names(parts: Parts) -> list[str]:
    return [f"adapter_{number}" for number in range(len(parts))]


def score_texts(model: Any, base: str) -> list[float]:
    """Return each text's total log-probability."""
    found = []
    for text in TEXTS:
        ids = _tokenizer(base)(text, return_tensors="pt").input_ids
        with torch.no_grad():
            chances = model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        found.append(chances.gather(1, ids[0, 1:, None]).sum().item())
    return found


QUESTIONS: dict[str, Callable[..., Any]] = {
    "scores": scores,
    "blended": blended,
    "compressed": compressed,
    "modules": modules,
}


def answer(line: str) -> dict[str, Any]:
    """Answer one question: `["name", [arguments]]`."""
    try:
        name, arguments = json.loads(line)
        return {"answer": QUESTIONS[name](*arguments)}
    except Exception:
        return {"error": traceback.format_exc()}


def main() -> None:
    """Answer line by line; the libraries may print wherever they like, but not in between."""
    replies, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    for line in sys.stdin:
        print(json.dumps(answer(line)), file=replies, flush=True)


if __name__ == "__main__":
    main()
