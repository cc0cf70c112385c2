"""Adapters on the model and on disk, with PEFT: configuration, applying, saving, loading.

Functions that change the model either succeed completely or leave it as it was. Knows nothing of
the session or the library.
"""

import copy
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from backend.engine.methods import config_validation
from backend.engine.methods.target_choice import choose
from backend.engine.models.linear_layers import Target, base_layer
from backend.errors import ModelError, Unsupported
from backend.requests import Lora

WEIGHTS = "adapter_model.safetensors"


def configure(
    request: Lora, targets: list[Target], base_name: str, *, quantized: bool = False
) -> LoraConfig:
    """Build PEFT's configuration; raises InvalidRequest where rank or targets are impossible.

    `targets` are those of `adaptable`. PEFT cannot apply dropout where parameters are adapted.
    """
    chosen = choose(request, targets, quantized=quantized)
    return LoraConfig(
        r=request.rank,
        lora_alpha=request.effective_alpha,
        lora_dropout=0.0 if chosen.parameters else request.dropout,
        target_modules=chosen.modules,
        target_parameters=chosen.parameters or None,
        use_rslora=request.use_rslora,
        use_dora=request.use_dora,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
    )


def apply(
    model: torch.nn.Module, peft: PeftModel | None, config: LoraConfig, adapter_id: str
) -> PeftModel:
    """Add a new adapter to the model (`get_peft_model`, `add_adapter`), or change nothing."""
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        if peft is None:
            return get_peft_model(model, config, adapter_name=adapter_id)
        peft.add_adapter(adapter_id, config)
        return peft
    except BaseException:
        if peft is None:
            _strip(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(grads.get(name, False))
        elif adapter_id in peft.peft_config:
            peft.delete_adapter(adapter_id)
        raise


def load_plainly(
    model: torch.nn.Module, peft: PeftModel | None, folder: Path, adapter_id: str
) -> PeftModel:
    """Load a scanned adapter folder with PEFT's own code, or change nothing.

    Saved adapters are verified with this function, because `fast_load.place` is our own code.
    """
    device = str(next(model.parameters()).device)
    try:
        if peft is None:
            return PeftModel.from_pretrained(
                model,
                str(folder),
                adapter_name=adapter_id,
                torch_device=device,
            )
        report = peft.load_adapter(str(folder), adapter_name=adapter_id, torch_device=device)
        if any(f".{adapter_id}." in key for key in report.missing_keys):
            raise ModelError(f"{folder.name} lacks weights for some of its layers.")
        return peft
    except BaseException:
        if peft is None:
            _strip(model)
        elif adapter_id in peft.peft_config:
            peft.delete_adapter(adapter_id)
        raise


def weights(peft: PeftModel, adapter_id: str) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors on the CPU, as PEFT's `get_peft_model_state_dict` names them.

    lora_A: (rank, inputs); lora_B: (outputs, rank); magnitudes: (outputs,).
    """
    tensors = get_peft_model_state_dict(peft, adapter_name=adapter_id, save_embedding_layers=False)
    return {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}


def write(peft: PeftModel, adapter_id: str, folder: Path) -> None:
    """Write one adapter as a plain PEFT folder.

    `save_pretrained` writes a named adapter to a sub-folder; its content is moved up.
    """
    peft.save_pretrained(str(folder), selected_adapters=[adapter_id], save_embedding_layers=False)
    inner = folder / adapter_id
    for path in list(inner.iterdir()):
        path.replace(folder / path.name)
    inner.rmdir()


def read_weights(peft: PeftModel, adapter_id: str, folder: Path) -> None:
    """Load the weights of a folder, written from this adapter, into the adapter on the model."""
    set_peft_model_state_dict(peft, load_file(folder / WEIGHTS), adapter_name=adapter_id)


def write_folder(
    folder: Path, config: LoraConfig, tensors: dict[str, torch.Tensor], base_name: str
) -> None:
    """Write a configuration and tensors, with the names of a file, as a plain PEFT folder."""
    config = copy.deepcopy(config)
    config.base_model_name_or_path = base_name
    config.save_pretrained(str(folder))
    contiguous = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})


def same_weights(peft: PeftModel, adapter_id: str, folder: Path) -> bool:
    """Tell whether a written file holds exactly the adapter's tensors on the model."""
    live, stored = weights(peft, adapter_id), load_file(folder / WEIGHTS)
    return live.keys() == stored.keys() and all(torch.equal(live[k], stored[k]) for k in live)


def same_effect(peft: PeftModel, left: str, right: str) -> bool:
    """Tell whether two adapters on a model are equal in every layer, bit for bit."""
    one, other = weights(peft, left), weights(peft, right)
    if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
        return False
    return all(
        layer.scaling.get(left) == layer.scaling.get(right)
        and (left in layer.lora_variant) == (right in layer.lora_variant)
        for layer in adapted_layers(peft).values()
    )


def all_finite(peft: PeftModel, adapter_id: str) -> bool:
    """Tell whether every number of an adapter is finite."""
    return all(bool(torch.isfinite(t).all()) for t in weights(peft, adapter_id).values())


def adapted_layers(model: torch.nn.Module) -> dict[str, LoraLayer]:
    """Return a base's adapted layers by module name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}


def base_weights(model: torch.nn.Module, layers: list[Target]) -> dict[str, torch.Tensor]:
    """Return the base's weights by layer, (outputs, inputs); quantised layers are left out."""
    found = {}
    for layer in (each for each in layers if each.kind == "layer"):
        weight = base_layer(model.get_submodule(layer.name)).weight
        if isinstance(weight, torch.Tensor) and weight.is_floating_point():
            found[layer.name] = weight.detach()
    return found


def bytes_in(layer: LoraLayer, adapter_id: str) -> int:
    """Return the bytes that an adapter's tensors take in one layer."""
    total = 0
    for parts in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        if adapter_id in parts:
            total += sum(p.numel() * p.element_size() for p in parts[adapter_id].parameters())
    return total


def method_title(config: LoraConfig) -> str:
    """Return the method's title for an adapter that does not change the base."""
    if config.use_dora:
        return "DoRA"
    return "rsLoRA" if config.use_rslora else "LoRA"


def target_titles(config: LoraConfig) -> tuple[str, ...]:
    """Return the names of an adapter's target modules and parameters."""
    return tuple(sorted({*(config.target_modules or ()), *(config.target_parameters or ())}))


def read_config(folder: Path) -> LoraConfig:
    """Return the PEFT configuration of a scanned folder; raises ModelError where there is none."""
    config_validation.read_raw_config(folder, folder.name)
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise Unsupported(f"{folder.name} is not a LoRA adapter.")
    return config


def trainable(config: LoraConfig) -> LoraConfig:
    """Return a copy of a configuration for training; saved ones have `inference_mode` set.

    Each adapter gets its own copy, because PEFT changes the object that it is given.
    """
    copied = copy.deepcopy(config)
    copied.inference_mode = False
    return copied


def copy_weights(peft: PeftModel, source_id: str, target_id: str) -> None:
    """Copy the weights of one adapter to another with the same configuration."""
    set_peft_model_state_dict(peft, weights(peft, source_id), adapter_name=target_id)


def _strip(model: torch.nn.Module) -> None:
    """Remove adapter layers from a model whose wrapping failed half-way."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
