"""Adapters made with Transformers 4, which held a mixture's experts as layers of their own.

Their files have factors for each expert (`experts.0.gate_proj`), and Transformers 5 holds all
experts in one parameter. PEFT converts such files when it loads them (0.21.2); here its own
conversion is run before the scan, which is then as strict as for any other file. Foreign
expressions never reach it: its configuration is made from the names in the file.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from safetensors.torch import load_file, save_file

from backend.catalogue import init_methods
from backend.engine.core.adapter_keys import key_of, layer_of
from backend.engine.methods.config_validation import (
    CONFIG,
    parameter_targets,
    read_raw_config,
    shown,
)
from backend.engine.methods.peft_io import WEIGHTS
from backend.engine.methods.targets import matched_parameters
from backend.engine.models.linear_layers import Target
from backend.errors import ModelError, Unsupported

NOTE = (
    "It has factors for each expert, as Transformers 4 had them; they were put together as PEFT "
    "does. A dropout, which matters in training only, is left out."
)
_SPLIT = re.compile(r"\.experts\.\d+\.")
_INNER = ".base_layer"
"""What PEFT adds to the path of a module whose second parameter is adapted, too."""
_NO_MORE = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "target_parameters")
"""What PEFT's conversion does not heed: with rsLoRA, its rank and alpha give another scaling."""


def is_split(keys: list[str], layers: list[Target] | None) -> bool:
    """Tell whether a file has factors for single experts that the base has no layers for."""
    known = {layer.name for layer in layers or ()}
    return bool(layers) and any(_SPLIT.search(key) and layer_of(key) not in known for key in keys)


def require_parameters(folder: Path, layers: list[Target] | None, name: str) -> None:
    """Raise ModelError where an adapter changes parameters of experts that a base lacks.

    The scan would name them by PEFT's own paths.
    """
    asked = parameter_targets(read_raw_config(folder, name), name)
    if layers and asked and not matched_parameters(asked, layers):
        raise ModelError(
            f"{name} changes parameters that this base does not have: {shown(asked[0])}.",
            cure="Load the base it was made for.",
        )


def put_together(
    folder: Path, place: Path, model: torch.nn.Module, layers: list[Target], name: str
) -> None:
    """Write an adapter with its experts put together into `place`.

    `model` is the base, with or without weights. Raises Unsupported or ModelError where PEFT has no
    conversion for this base, or where the parts of an expert do not fit together.
    """
    raw = read_raw_config(folder, name)
    if init_methods.is_repeatable(raw.get("init_lora_weights", True)):
        raise Unsupported(
            f"{name} has factors for each expert on a changed base, which cannot be put together.",
            cure="Convert it to plain LoRA where it was trained.",
        )
    if odd := [field for field in _NO_MORE if raw.get(field)]:
        raise Unsupported(
            f"{name} has factors for each expert, and {odd[0]}, which cannot be put together.",
            cure="Train it again with Transformers 5.",
        )
    tensors = load_file(folder / WEIGHTS)
    config = _converted(raw, tensors, model, name)
    try:
        moved = convert_peft_adapter_state_dict_for_transformers(model, config, tensors)
    except (ValueError, RuntimeError, TypeError, KeyError, IndexError) as error:
        raise ModelError(
            f"The factors of the experts in {name} do not fit together.",
            cure="Its file is incomplete, or it was made for another base.",
            details=str(error),
        ) from None
    paths = {layer_of(key) for key in moved}
    if any(path.removesuffix(_INNER) not in paths for path in paths):
        raise _only_some_parts(name)
    weights = _weights_by_parameter(moved, layers)
    values = {
        "target_modules": sorted(config.target_modules),
        "target_parameters": sorted({*config.target_parameters, *weights}),
        "lora_dropout": 0.0,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
    }
    (place / CONFIG).write_text(json.dumps({**raw, **values}), encoding="utf-8")
    kept = {key: tensor.contiguous().clone() for key, tensor in moved.items()}
    save_file(kept, place / WEIGHTS, metadata={"format": "pt"})


def _converted(
    raw: dict[str, Any], tensors: dict[str, torch.Tensor], model: torch.nn.Module, name: str
) -> LoraConfig:
    """Return PEFT's configuration for the put-together experts, from the names in the file."""
    leaves = sorted({layer_of(key).rsplit(".", 1)[-1] for key in tensors})
    try:
        config = LoraConfig(
            r=raw.get("r", 8), lora_alpha=raw.get("lora_alpha", 8), target_modules=leaves
        )
        convert_peft_config_for_transformers(config, model, None)
    except (ValueError, TypeError) as error:
        raise _only_some_parts(name, str(error)) from None
    if not config.target_parameters:
        raise Unsupported(
            f"{name} has factors for each expert, and PEFT cannot put them together for this base.",
            cure="Train it again with Transformers 5.",
        )
    return config


def _only_some_parts(name: str, details: str = "") -> Unsupported:
    """Return why a file without all three layers of an expert is refused.

    PEFT 0.21.2 would load one with gate and up alone without a word, and compute something else.
    """
    return Unsupported(
        f"{name} changes only some of the parts of each expert, which PEFT puts together into one "
        "here, so it would compute something else.",
        cure="Train it again with Transformers 5, or use an adapter for all parts of the experts.",
        details=details,
    )


def _weights_by_parameter(tensors: dict[str, torch.Tensor], layers: list[Target]) -> list[str]:
    """Return the weights of those layers in a file that PEFT reaches only as parameters.

    PEFT itself would drop these parts without a word.
    """
    return [
        f"{layer.name}.weight"
        for layer in layers
        if layer.by_parameter and key_of(layer.name, "lora_A.weight") in tensors
    ]
