"""Adapters with random weights of any kind, made by plain PEFT and put into a library by hand."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.engine.methods.peft_io import write
from benchmarks.models import TINY, random_llama


@contextmanager
def tiny_service(folder: Path) -> Iterator[Service]:
    """A service with a tiny random Llama loaded."""
    model = random_llama(folder / "llama", TINY)
    with Service(Settings(workspace=folder / "workspace", runtime="inline")) as service:
        service.start(rq.LoadModel(source=str(model))).result(timeout=60)
        yield service


def fresh_base(service: Service) -> Any:
    """Return the service's base as plain Transformers loads it."""
    base = service.snapshot().base
    assert base is not None
    return AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()


def fresh_peft(service: Service, *names: str) -> PeftModel:
    """Return a fresh model with these adapters of the library, each under its id."""
    infos = [service.library.get(name) for name in names]
    folders = [str(service.library.folder(info.id)) for info in infos]
    model = PeftModel.from_pretrained(fresh_base(service), folders[0], adapter_name=infos[0].id)
    for info, folder in zip(infos[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=info.id)
    return model.eval()


def make_adapter(
    service: Service, name: str, *, method: str = "LoRA", seed: int = 0, **config: Any
) -> rs.AdapterInfo:
    """Put an adapter with random weights into the library."""
    base = service.snapshot().base
    assert base is not None
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **config}
    adapter_id = f"ad_{abs(hash(name)) % 16**6:06x}"
    torch.manual_seed(seed)
    made = LoraConfig(task_type="CAUSAL_LM", **settings)
    model = get_peft_model(fresh_base(service), made, adapter_name=adapter_id)
    for key, parameter in model.named_parameters():
        if "lora_A" in key or "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = service.library.folder(adapter_id)
    folder.mkdir(parents=True)
    write(model, adapter_id, folder)
    info = rs.AdapterInfo(
        id=adapter_id,
        name=name,
        colour=service.library.next_colour(),
        method=method,
        rank=max([made.r, *made.rank_pattern.values()]),
        parameters=0,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        created=time.time(),
        strength="on-off" if made.use_dora else "any",
    )
    service.library.write_sidecar(folder, info)
    return info


def changes(model: PeftModel, adapter_id: str) -> dict[str, torch.Tensor]:
    """Return what an adapter changes in each layer, as PEFT itself tells."""
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight(adapter_id).detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and adapter_id in module.lora_A
    }


def exact_sum(model: PeftModel, sources: list[tuple[str, float]]) -> dict[str, torch.Tensor]:
    """Return the weighted sum of adapters' changes; the sources are ids."""
    total: dict[str, torch.Tensor] = {}
    for adapter_id, weight in sources:
        for layer, change in changes(model, adapter_id).items():
            total[layer] = total.get(layer, 0) + weight * change.double()
    return total


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Return |left - right| / |right| over all layers."""
    assert left.keys() == right.keys()
    gap = sum(float((left[k].double() - right[k].double()).square().sum()) for k in right)
    size = sum(float(right[k].double().square().sum()) for k in right)
    return (gap / size) ** 0.5
