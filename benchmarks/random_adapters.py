"""Adapters with random weights that do something, in a service's library without any training."""

import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from backend import Service
from backend.library import new_adapter_id
from backend.results import AdapterInfo

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_random_adapter(
    service: Service, name: str, *, seed: int, size: float = 0.05, **config: object
) -> AdapterInfo:
    """Write a random LoRA adapter for the loaded base into the library."""
    base = service.snapshot().base
    assert base is not None
    options = {"r": 8, "lora_alpha": 16, "target_modules": ALL_LINEAR, **config}
    lora = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=base.path, **options)
    adapter_id = new_adapter_id()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(base.path))
    model.name_or_path = base.path  # else PEFT warns that the configuration names another base
    peft = get_peft_model(model.float(), lora, adapter_name=adapter_id)
    for key, parameter in peft.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(0, size)
    folder = service.library.folder(adapter_id)
    peft.save_pretrained(str(folder), selected_adapters=[adapter_id], save_embedding_layers=False)
    for path in list((folder / adapter_id).iterdir()):
        path.replace(folder / path.name)
    (folder / adapter_id).rmdir()
    info = AdapterInfo(
        id=adapter_id,
        name=name,
        colour=service.library.next_colour(),
        method="DoRA" if lora.use_dora else "LoRA",
        rank=lora.r,
        parameters=1,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        created=time.time(),
        strength="on-off" if lora.use_dora else "any",
    )
    service.library.write_sidecar(folder, info)
    return info
