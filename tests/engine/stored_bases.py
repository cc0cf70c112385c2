"""Bases on disk whose files are quantised already, as bitsandbytes or a model's makers do it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from backend.engine.models import quantization
from tests.engine.tiny import STARTER

WEIGHTS = "model.safetensors"
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
Reference = dict[str, torch.Tensor]


def configure(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """Change entries of a JSON file."""
    said = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**said, **changes}), encoding="utf-8")
    return folder


def write_packed(folder: Path, base: Path, **options: Any) -> Path:
    """Write a base as bitsandbytes stores it quantised."""
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(**options),
        device_map={"": "cpu"},
    )
    quantization.guard(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(STARTER).save_pretrained(folder)
    return folder


def write_fp8(folder: Path, *, block: int, rows: int | None = None) -> Reference:
    """Turn a base's projections into FP8 with a scale for each block; return the true weights.

    `rows` is the height that config.json states, if it is another one.
    """
    stored, true = load_file(folder / WEIGHTS), {}
    for key, weight in list(stored.items()):
        true[key] = weight
        if not key.endswith("proj.weight"):
            continue
        height, width = weight.shape
        scales = torch.rand(-(-height // block), -(-width // block)) * 0.01 + 0.001
        each = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)[:height, :width]
        stored[key] = (weight / each).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored[f"{key}_scale_inv"] = scales
        true[key] = stored[key].float() * each
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    said = {"quant_method": "fp8", "weight_block_size": [rows or block, block]}
    configure(folder, quantization_config=said)
    return true


def write_mxfp4(folder: Path) -> Reference:
    """Turn a gpt-oss model's experts into MXFP4; return the true weights."""
    values = torch.tensor([*FP4, *(-each for each in FP4)])
    stored, true = load_file(folder / WEIGHTS), {}
    for key, weight in list(stored.items()):
        true[key] = weight
        if not key.endswith(("gate_up_proj", "down_proj")):
            continue
        experts, inputs, outputs = weight.shape
        shape = (experts, outputs, inputs // 32, 16)
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8)
        scales = torch.randint(118, 124, shape[:-1], dtype=torch.uint8)
        pairs = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], -1)
        full = pairs.flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
        true[key] = full.reshape(experts, outputs, inputs).transpose(1, 2)
        del stored[key]
        stored[f"{key}_blocks"], stored[f"{key}_scales"] = blocks, scales
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    configure(folder, quantization_config={"quant_method": "mxfp4"})
    return true
