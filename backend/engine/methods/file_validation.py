"""Validation of adapter folders without loading them: their content, whether it fits and is safe.

PEFT 0.21.2 itself accepts base weights hidden in an adapter, NaN, layers that fit only partly and
regular expressions that never end, all without an error. So a folder is not trusted: configurations
are returned in a normal form with plain module names, and paths in them are never followed. Knows
nothing of the session or the library.
"""

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from backend.catalogue import init_methods
from backend.engine.core.adapter_keys import key_of, layer_of
from backend.engine.methods import scaling
from backend.engine.methods.adaptable import places, with_weights
from backend.engine.methods.config_validation import (
    normal_form,
    parameter_targets,
    read_raw_config,
    require_plain_lora,
    shown,
)
from backend.engine.methods.peft_io import WEIGHTS
from backend.engine.methods.targets import matched, matched_parameters, outside
from backend.engine.models.linear_layers import Target
from backend.errors import ModelError, Unsupported
from backend.files import read_limits
from backend.files.foreign_files import require_size
from backend.files.safetensors_header import require_header

_KEY = re.compile(
    r"base_model\.model\.([A-Za-z0-9_.-]+)\.lora_([AB]\.weight|magnitude_vector(\.weight)?)"
)
_DTYPES = {"F32", "F16", "BF16"}
AGAIN = "Download it again, or train it again."


class Fit(NamedTuple):
    """One layer or parameter that an adapter changes; its weight change is scaling x B x A.

    Of a parameter of experts, A and B hold the factors of all experts (PEFT's `ParamWrapper`).
    `path` is where the file has the tensors.
    """

    layer: str
    rank: int
    alpha: float
    scaling: float
    path: str = ""
    experts: int = 1

    @property
    def title(self) -> str:
        """The last part of its name; that of the layer, where it is a layer's weight."""
        return self.layer.removesuffix(".weight").rsplit(".", 1)[-1]

    def key(self, part: str) -> str:
        """Return the name of one of its tensors; `part` is such as `lora_A.weight`."""
        return key_of(self.path or self.layer, part)


class Scanned(NamedTuple):
    """A validated adapter folder.

    `config` is in normal form; `fits` lists its layers; `initial` is the initialisation where that
    changed the base (`pissa`, `olora`), else empty.
    """

    config: LoraConfig
    fits: list[Fit]
    tensors: dict[str, torch.Tensor]
    initial: str


def scan(folder: Path, layers: list[Target] | None, *, name: str = "") -> Scanned:
    """Read an adapter folder; raises ModelError or Unsupported where it is invalid or unsafe.

    `layers` are those of the base that it should fit; None skips this check.
    """
    name = name or folder.name
    raw = read_raw_config(folder, name)
    require_plain_lora(raw, name)
    shapes = _shapes(folder, name)
    paths = _layer_names(shapes, name)
    held = _parameters(raw, layers, name)
    names = [path for path in paths if path not in held]
    parameters = [held[path].name for path in paths if path in held]
    config = normal_form(raw, names, layers, name, parameters=parameters)
    if layers is not None:
        _require_same_layers(config, names, layers, name, held=held.keys() - set(paths))
    fits = [_fit(config, path, held.get(path)) for path in paths]
    _require_shapes(shapes, fits, layers, config, name)
    tensors = _tensors(folder / WEIGHTS)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{name} contains numbers that are not finite, in {key}.", cure="Train it again."
            )
    start = raw.get("init_lora_weights", True)
    initial = init_methods.name_of(start) if init_methods.is_repeatable(start) else ""
    return Scanned(config, fits, tensors, initial)


def _shapes(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape from the safetensors header; raises where there is none."""
    path = folder / WEIGHTS
    if not path.exists():
        require_no_pickle([path.name for path in folder.iterdir()], name)
        raise ModelError(f"{name} has no {WEIGHTS}.", cure="The folder is incomplete.")
    require_size(path, read_limits.ADAPTER_BYTES, f"The {WEIGHTS} of {name}")
    require_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            strange = [key for key, part in slices.items() if part.get_dtype() not in _DTYPES]
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"The weights of {name} are damaged or cut off ({error}).", cure=AGAIN
        ) from None
    if strange:
        raise Unsupported(f"{name} stores {strange[0]} in a dtype that adapters do not use.")
    return shapes


def require_no_pickle(files: list[str], name: str) -> None:
    """Raise Unsupported where an adapter has its weights only as pickle."""
    pickled = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl")))
    if pickled:
        raise Unsupported(
            f"{name} has its weights only as {shown(pickled[0])}, a format that can run code.",
            cure="Save it again as safetensors where it was trained.",
        )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors in fp32, as PEFT keeps adapters, under PEFT's current names.

    Older versions named DoRA's magnitudes `.lora_magnitude_vector.weight`, with other shapes.
    """
    found = {key: tensor.float() for key, tensor in load_file(path).items()}
    return {
        key.removesuffix(".weight") if "magnitude" in key else key: tensor.flatten()
        if "magnitude" in key
        else tensor
        for key, tensor in found.items()
    }


def _layer_names(shapes: dict[str, tuple[int, ...]], name: str) -> list[str]:
    """Return the layers of an adapter file in order; raises Unsupported for other tensors in it.

    Base weights hidden in an adapter file would silently overwrite the base.
    """
    for key in shapes:
        if not is_adapter_weight(key):
            raise Unsupported(
                f"{name} contains {key[:120]!r}, which is not an adapter weight.",
                cure="Such a file could overwrite the base; only LoRA weights are accepted.",
            )
    if not shapes:
        raise ModelError(f"{name} contains no weights at all.")
    return list(dict.fromkeys(layer_of(key) for key in shapes))


def is_adapter_weight(key: str) -> bool:
    """Tell whether a tensor's name is that of a part of LoRA or DoRA, as PEFT writes it."""
    return _KEY.fullmatch(key) is not None


_HEADS = ("lm_head", "embed_tokens", "embed_out", "wte")


def _parameters(raw: dict[str, Any], layers: list[Target] | None, name: str) -> dict[str, Target]:
    """Return the base's parameters that `target_parameters` name, by their paths in a file."""
    return places(matched_parameters(parameter_targets(raw, name), layers or []))


def _require_same_layers(
    config: LoraConfig,
    names: list[str],
    layers: list[Target],
    name: str,
    *,
    held: Collection[str],
) -> None:
    """Raise where base and file do not have the same layers, as PEFT would create them.

    `held` are the paths of parameters that the adapter should change, but that its file lacks.
    """
    available = {layer.name for layer in layers if layer.kind == "layer"}
    foreign = [each for each in names if each not in available]
    if any(each.rsplit(".", 1)[-1] in _HEADS for each in foreign):
        raise Unsupported(
            f"{name} changes the output head or the embeddings, which cannot be blended or merged "
            "safely.",
            cure="Use an adapter for the layers between them.",
        )
    if part := next(filter(None, (outside(each, layers) for each in foreign)), ""):
        raise Unsupported(
            f"{name} also changes {shown(part)}, which text does not pass through. Here, adapters "
            "change the language model alone.",
            cure="Train it for the language model alone, or merge it where it was trained.",
        )
    if foreign:
        raise ModelError(
            f"{name} was made for another base: there is no {foreign[0]} here.",
            cure="Load the base it was made for.",
        )
    _require_reachable(names, layers, name)
    wanted = {layer.name for layer in matched(config, layers) if layer.kind == "layer"}
    missing = (wanted - set(names)) | set(held)
    if missing:
        raise ModelError(
            f"{name} lacks weights for {len(missing)} of the layers that it should change, "
            f"including {min(missing)}.",
            cure="It was made for a smaller base, or its file is incomplete.",
        )


def _require_reachable(names: list[str], layers: list[Target], name: str) -> None:
    """Raise Unsupported where PEFT could not put a part of the adapter on this base."""
    known = {layer.name: layer for layer in layers}
    for layer in (known[each] for each in names if each in known):
        if layer.refusal:
            cure = "Use an adapter without it."
            if layer.packed:
                cure = "Load the base without quantisation, or use an adapter without it."
            raise Unsupported(f"{name} changes {layer.name}. {layer.refusal}.", cure=cure)
        if layer.by_parameter:
            raise Unsupported(
                f"{name} changes {layer.name}, whose name PEFT takes for that of an expert: it "
                "would load only a part of the adapter.",
                cure="Save it with target_parameters where it was trained.",
            )


def _fit(config: LoraConfig, path: str, held: Target | None) -> Fit:
    """Return rank, alpha and scaling of a layer or a parameter, as PEFT computes them."""
    layer = held.name if held else path
    rank = scaling.rank_of(config, layer)
    return Fit(
        layer,
        rank,
        scaling.alpha_of(config, layer),
        scaling.scaling_of(config, layer, rank),
        path,
        held.experts if held else 1,
    )


def _require_shapes(
    shapes: dict[str, tuple[int, ...]],
    fits: list[Fit],
    layers: list[Target] | None,
    config: LoraConfig,
    name: str,
) -> None:
    """Raise where a tensor is missing or its shape does not fit its layer or rank."""
    sizes = {layer.name: layer for layer in [*(layers or ()), *with_weights(layers or [])]}
    unknown = layers is None and bool(config.target_parameters)
    for fit in fits:
        first, second = shapes.get(fit.key("lora_A.weight")), shapes.get(fit.key("lora_B.weight"))
        size = shapes.get(fit.key("lora_magnitude_vector")) or shapes.get(
            fit.key("lora_magnitude_vector.weight")
        )
        if first is None or second is None or (config.use_dora and size is None):
            raise ModelError(f"{name} lacks a part of {fit.layer}.", cure=AGAIN)
        if size is not None and not config.use_dora:
            raise ModelError(
                f"{name} has DoRA magnitudes, but its configuration says that it is not DoRA."
            )
        if len(first) != 2 or len(second) != 2:
            raise ModelError(
                f"{fit.layer} of {name} has shapes {first} and {second}, which are not matrices."
            )
        base = sizes.get(fit.layer)
        wanted_in = base.inputs if base else first[-1]
        wanted_out = base.outputs if base else second[0]
        rank = fit.rank * fit.experts
        if unknown and first[0] % fit.rank == 0:  # how many experts there are, only the base says
            rank = first[0]
        if first != (rank, wanted_in) or second != (wanted_out, rank):
            raise ModelError(
                f"{fit.layer} of {name} has shapes {first} and {second}, which do not fit "
                f"rank {fit.rank} on a layer of {wanted_in} by {wanted_out}.",
                cure="It was made for another base, or its configuration was changed.",
            )
        if size is not None and math.prod(size) != wanted_out:
            raise ModelError(f"The DoRA magnitudes of {fit.layer} in {name} do not fit this base.")
