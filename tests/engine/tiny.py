"""A base of one tiny layer on disk, a service on it, and adapters of it in every shape."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.engine.models.linear_layers import linear_layers
from backend.library import new_adapter_id

STARTER = Path(__file__).parents[2] / "starter" / "model"
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEXTS = ("The cat is on the mat.", "Hello! Where are you going today?")


def write_base(folder: Path, *, layers: int = 1, seed: int = 0, tokenizer: Any = None) -> Path:
    """Write a random Llama with the starter's tokenizer, or with another one."""
    torch.manual_seed(seed)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(STARTER)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fresh(base: Path) -> Any:
    """Load the base as plain Transformers does."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def write_adapter(
    folder: Path,
    base: Path,
    config: LoraConfig,
    *,
    seed: int = 0,
    change: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> Path:
    """Write an adapter as PEFT does, every weight moved as training would."""
    torch.manual_seed(seed)
    model = get_peft_model(fresh(base), deepcopy(config))  # PEFT writes the base's path into it
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                if "magnitude" in name:
                    parameter.mul_(1 + noise)
                else:
                    parameter.add_(noise)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def lora(**options: Any) -> LoraConfig:
    """Configure LoRA on every layer."""
    return LoraConfig(task_type="CAUSAL_LM", **{"target_modules": EVERYWHERE, **options})


def enlist(service: Service, name: str, config: LoraConfig, **options: Any) -> rs.AdapterInfo:
    """Put an adapter that PEFT wrote into the service's library."""
    facts = service.snapshot().base
    assert facts is not None
    adapter_id = new_adapter_id()
    folder = write_adapter(service.library.folder(adapter_id), Path(facts.path), config, **options)
    method = "DoRA" if config.use_dora else "rsLoRA" if config.use_rslora else "LoRA"
    info = rs.AdapterInfo(
        id=adapter_id,
        name=name,
        colour=service.library.next_colour(),
        method=method,
        rank=config.r,
        parameters=1,
        base_name=facts.name,
        base_fingerprint=facts.fingerprint,
        created=float(len(service.library.all())),
        origin="added",
    )
    service.library.write_sidecar(folder, info)
    return info


def start_service(folder: Path, base: Path, **settings: Any) -> Service:
    """Open an inline service on a base."""
    service = Service(Settings(workspace=folder, **{"runtime": "inline", **settings}))
    service.start(rq.LoadModel(source=str(base))).result(timeout=120)
    return service


def plain_scores(base: Path, folder: Path | None, texts: tuple[str, ...] = TEXTS) -> list[float]:
    """Score texts with plain PEFT in a fresh model: the oracle."""
    model = fresh(base)
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    scores = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            chances = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        scores.append(chances.gather(1, ids[0, 1:, None]).sum().item())
    return scores


def scores(service: Service, variant: rq.Variant) -> list[float]:
    """Score the same texts with the service."""
    request = rq.Score(texts=list(TEXTS), variants=[variant])
    return service.start(request).result(timeout=120).scores[0]


def layer_names(base: Path) -> list[str]:
    """Return the layers that an adapter can change."""
    return [target.name for target in linear_layers(fresh(base))]
