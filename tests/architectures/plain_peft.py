"""What plain Transformers and PEFT do with a base on disk: the oracle, and who counts."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ("The cat is on the mat.", "Hello! Where are you going today?")
STEPS, RATE = 8, 1e-2


def fresh(folder: Path) -> Any:
    """Load a base as plain Transformers does."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def scores(folder: Path, adapter: Path | None = None) -> list[float]:
    """Return the natural-log probability of each text's tokens after the first."""
    model = fresh(folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    return score(model, AutoTokenizer.from_pretrained(folder))


def score(model: Any, tokenizer: Any) -> list[float]:
    """Score the texts with a model in memory, one forward pass each."""
    found = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            chances = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        found.append(chances.gather(1, ids[0, 1:, None]).sum().item())
    return found


def why_not(folder: Path, scratch: Path) -> str:
    """Return why plain PEFT cannot train a base and read the adapter back; empty where it can.

    All linear layers are tried first, then those that PEFT accepts for the type.
    """
    reason = ""
    for targets in _targets(folder):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _train_and_read_back(folder, targets, scratch)
        except Exception as error:
            reason = reason or f"{type(error).__name__}: {first_line(error)}"
        else:
            return ""
    return reason


def _targets(folder: Path) -> Iterator[str | list[str]]:
    yield "all-linear"
    model = fresh(folder)
    head = model.get_output_embeddings()
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and module is not head
    }
    yield sorted(linear - {"out_proj", "conv1d"})
    yield sorted(linear & {"q_proj", "v_proj", "query", "value", "in_proj", "x_proj"})


def _train_and_read_back(folder: Path, targets: str | list[str], scratch: Path) -> None:
    """Raise where a few steps do not lower the loss, or the saved adapter scores otherwise."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    peft = get_peft_model(fresh(folder), config).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    losses = _losses(peft, ids)
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}")
    peft.eval().save_pretrained(scratch, save_embedding_layers=False)
    here, read_back = score(peft, tokenizer), scores(folder, scratch)
    if not close(here, read_back, 1e-4):
        raise RuntimeError(f"the adapter that was read back scores {read_back}, not {here}")


def _losses(peft: Any, ids: torch.Tensor) -> list[float]:
    trained = [each for each in peft.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    losses = []
    for _ in range(STEPS):
        loss = peft(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def write_adapter(folder: Path, base: Path, *, seed: int) -> Path:
    """Write a random LoRA on all linear layers of a base, as PEFT does."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    get_peft_model(fresh(base), config).save_pretrained(folder, save_embedding_layers=False)
    return folder


def close(found: list[float], expected: list[float], bound: float) -> bool:
    """Tell whether scores agree, relative to max(1, |value|); NaN agrees with nothing."""
    pairs = zip(found, expected, strict=True)
    return all(abs(a - b) <= bound * max(1.0, abs(b)) for a, b in pairs)


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says."""
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
