"""Adapters of mlx-lm, which trains on Apple's chips: the same mathematics in another layout.

There a layer adds scale * (x @ lora_a @ lora_b) to its output, so that A = lora_a^T, B = lora_b^T
and alpha = scale * rank. DoRA's magnitudes are the same numbers as PEFT's. Knows nothing of bases.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from backend.engine.adapters.choice import MLX_WEIGHTS
from backend.engine.core.adapter_keys import key_of, layer_of
from backend.engine.methods.config_validation import shown
from backend.engine.methods.file_validation import AGAIN
from backend.engine.methods.peft_io import WEIGHTS
from backend.errors import ModelError, Unsupported
from backend.files import read_limits
from backend.files.foreign_files import require_size
from backend.files.safetensors_header import require_header

PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
KINDS = ("lora", "dora")
_FULL = (
    "is not an adapter: MLX trained the whole base (fine_tune_type full), and the file holds whole "
    "layers"
)


class Converted(NamedTuple):
    """An adapter in PEFT's form: its configuration, its tensors, and a sentence about it."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    note: str


def is_mlx(raw: dict[str, Any], folder: Path) -> bool:
    """Tell whether a configuration is that of mlx-lm; folders with PEFT's own file are PEFT's."""
    says_so = "fine_tune_type" in raw or "lora_parameters" in raw
    is_peft = "peft_type" in raw and (folder / WEIGHTS).exists()
    return says_so and not is_peft


def convert(raw: dict[str, Any], folder: Path, name: str) -> Converted:
    """Return the adapter in PEFT's form; raises Unsupported or ModelError where it has none."""
    kind = raw.get("fine_tune_type", "lora")
    _require_kind(kind, name)
    tensors = _tensors(_weights_file(folder, name), name)
    if kind == "dora" and not any(key.endswith("magnitude_vector") for key in tensors):
        raise Unsupported(
            f"{name} is a DoRA adapter of MLX without its magnitudes (m), which cannot be guessed.",
            cure="Save it again with mlx-lm.",
        )
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key}
    rank = _rank(raw, ranks, name)
    alpha, how = _alpha(raw, rank, name)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": _parameters(raw, name).get("dropout") or 0.0,
        "use_dora": kind == "dora",
        "target_modules": sorted({layer_of(key) for key in tensors}),
        "base_model_name_or_path": raw.get("base_model_name_or_path") or raw.get("model") or "",
    }
    note = f"It is an MLX adapter and was converted to PEFT's form ({how})."
    return Converted(config, tensors, note)


def _require_kind(kind: object, name: str) -> None:
    if kind == "full":
        raise Unsupported(
            f"{name} {_FULL}.", cure="Export the whole model with MLX and load it as a base."
        )
    if kind not in KINDS:
        raise Unsupported(
            f"{name} is an MLX adapter of the kind {shown(kind)!r}.",
            cure="LoRA and DoRA adapters of MLX can be added.",
        )


def _weights_file(folder: Path, name: str) -> Path:
    found = next((folder / f for f in (MLX_WEIGHTS, WEIGHTS) if (folder / f).exists()), None)
    if found is not None:
        require_size(found, read_limits.ADAPTER_BYTES, f"The {found.name} of {name}")
        require_header(found)
        return found
    if (folder / "adapters.npz").exists():
        raise Unsupported(
            f"{name} has its weights only as adapters.npz, which older versions of MLX wrote.",
            cure=f"Save them as {MLX_WEIGHTS} with mlx-lm.",
        )
    raise ModelError(f"{name} has no {MLX_WEIGHTS}.", cure="The folder is incomplete.")


def _tensors(path: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors under PEFT's names: A (rank, inputs), B (outputs, rank), m (outputs,)."""
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"The weights of {name} are damaged or cut off ({error}).", cure=AGAIN
        ) from None
    if not found:
        raise ModelError(f"{name} contains no weights at all.")
    return dict(_converted(key, tensor, name) for key, tensor in found.items())


def _converted(key: str, tensor: torch.Tensor, name: str) -> tuple[str, torch.Tensor]:
    module, _, part = key.rpartition(".")
    if part not in PARTS or not module:
        raise Unsupported(
            f"{name} contains {key[:120]!r}, which is not an adapter weight of MLX.",
            cure="Such a file could overwrite the base; only LoRA weights are accepted.",
        )
    if tensor.dim() == 3:
        raise Unsupported(
            f"{name} changes the experts of a mixture ({module[:120]}), which cannot be blended.",
            cure="Use an adapter for the layers between them.",
        )
    if tensor.dim() != (1 if part == "m" else 2):
        raise ModelError(
            f"{key[:120]} of {name} has the shape {tuple(tensor.shape)}, which cannot be right."
        )
    new = tensor if part == "m" else tensor.T.contiguous()
    return key_of(module, PARTS[part]), new


def _parameters(raw: dict[str, Any], name: str) -> dict[str, Any]:
    parameters = raw.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise ModelError(f"{name} is an MLX adapter without its lora_parameters.", cure=AGAIN)
    return parameters


def _rank(raw: dict[str, Any], ranks: set[int], name: str) -> int:
    """Return the rank of all layers, which the file knows best."""
    said = _parameters(raw, name).get("rank")
    if len(ranks) != 1:
        raise ModelError(
            f"{name} has layers of the ranks {sorted(ranks)}, and MLX gives all layers one rank."
        )
    rank = ranks.pop()
    if said is not None and said != rank:
        raise ModelError(
            f"{name} says rank {shown(said)}, but its weights have rank {rank}.",
            cure="Its configuration was changed, or belongs to another file.",
        )
    return rank


def _alpha(raw: dict[str, Any], rank: int, name: str) -> tuple[float, str]:
    """Return PEFT's alpha, and a few words about it.

    mlx-lm before July 2024 multiplied scale by alpha / rank, and later versions ignore alpha.
    """
    parameters = _parameters(raw, name)
    scale = _factor(parameters.get("scale"), "scale", name)
    alpha = _factor(parameters.get("alpha"), "alpha", name)
    if scale is None and alpha is None:
        raise ModelError(f"{name} does not say its scale, so its strength is unknown.", cure=AGAIN)
    if scale is None:
        assert alpha is not None
        return alpha, f"alpha {alpha:g} for rank {rank}, as it gives no scale"
    if alpha not in (None, float(rank)):
        raise Unsupported(
            f"{name} gives both scale {scale:g} and alpha {alpha:g}, which versions of mlx-lm "
            "multiply differently.",
            cure="Remove alpha from its lora_parameters, or scale, whichever its training ignored.",
        )
    return scale * rank, f"scale {scale:g} is alpha {scale * rank:g} for rank {rank}"


def _factor(value: object, field: str, name: str) -> float | None:
    if value is None:
        return None
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value <= 1e6:  # type: ignore[operator]
        raise ModelError(f"{name} has {field} = {shown(value)}, which cannot be right.")
    return float(value)  # type: ignore[arg-type]
