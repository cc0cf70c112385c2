"""Adapter folders, read without being loaded: what is in them, and whether it fits and is safe.

PEFT 0.21.2 itself loads base weights hidden in an adapter, NaN, half-fitting layers and regular
expressions that never end, all without an error. Nothing a folder says is trusted: configurations
come back in a normal form with plain module names, and paths inside them are never followed.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from backend.engine.adapters import WEIGHTS, Target, matched
from backend.errors import ModelError, Unsupported

CONFIG = "adapter_config.json"
MAX_RANK = 4096
_MAX_CONFIG_BYTES = 1_000_000
_MAX_PATTERNS = 1000  # each is tried on each layer
_KEY = re.compile(
    r"base_model\.model\.([A-Za-z0-9_.-]+)\.lora_([AB]\.weight|magnitude_vector(\.weight)?)"
)
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_DTYPES = {"F32", "F16", "BF16"}
REWRITES_BASE = ("pissa", "olora")
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")


class Fit(NamedTuple):
    """One layer that an adapter changes, and how: its weight change is scaling x B x A."""

    layer: str
    rank: int
    alpha: float
    scaling: float


class Scanned(NamedTuple):
    """An adapter folder that was read and found good.

    `config` is in normal form; `fits` lists its layers; `initial` is how its weights began, where
    that changed the base (`pissa`, `olora`), else empty.
    """

    config: LoraConfig
    fits: list[Fit]
    tensors: dict[str, torch.Tensor]
    initial: str


def scan(folder: Path, layers: list[Target] | None, *, name: str = "") -> Scanned:
    """Read an adapter folder; raises ModelError or Unsupported where it is not good or not safe.

    `layers` are those of the base it should fit; None skips that question.
    """
    name = name or folder.name
    raw = read_raw_config(folder, name)
    _require_plain_lora(raw, name)
    shapes = _shapes(folder, name)
    names = _layer_names(shapes, name)
    config = _normal_form(raw, names, layers, name)
    if layers is not None:
        _require_same_layers(config, names, layers, name)
    fits = [_fit(config, layer) for layer in names]
    _require_shapes(shapes, fits, layers, config, name)
    tensors = _tensors(folder / WEIGHTS)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{name} holds numbers that are not finite, in {key}.", cure="Train it again."
            )
    start = str(raw.get("init_lora_weights", True)).lower()
    return Scanned(config, fits, tensors, start if start in REWRITES_BASE else "")


def layer_of(key: str) -> str:
    """Return the layer that a tensor of an adapter file belongs to."""
    return key.removeprefix("base_model.model.").split(".lora_", 1)[0]


def read_raw_config(folder: Path, name: str) -> dict[str, Any]:
    """Return a folder's configuration as it is; raises ModelError where there is none."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{name} has no {CONFIG}, so it is not an adapter.")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ModelError(f"The {CONFIG} of {name} is far too large to be one.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name} has no readable {CONFIG}: {shown(error, 200)}.") from None
    if not isinstance(content, dict):
        raise ModelError(f"The {CONFIG} of {name} is not a JSON object.")
    return content


def shown(value: object, length: int = 40) -> str:
    """Return a foreign value as text that can be shown: short, on one line, valid Unicode."""
    text = str(value)[:length].encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in text)


def _require_plain_lora(raw: dict[str, Any], name: str) -> None:
    """Raise Unsupported where an adapter is more than LoRA on linear layers, with the reason."""
    if raw.get("peft_type") != "LORA":
        raise Unsupported(
            f"{name} is a {shown(raw.get('peft_type'))} adapter.",
            cure="LoRA, rsLoRA and DoRA adapters can be added.",
        )
    for field, sentence in _REFUSED.items():
        value = raw.get(field)
        if value not in _NOTHING:
            raise Unsupported(f"{name} {sentence}.", cure=_MERGE_ELSEWHERE)
    mapping = raw.get("auto_mapping")
    if mapping not in _NOTHING and not _names_transformers(mapping):
        raise Unsupported(
            f"{name} wants program code of its own to be loaded (auto_mapping).",
            cure=_MERGE_ELSEWHERE,
        )
    for key, value in raw.items():
        if key not in _KNOWN and value not in _NOTHING:
            raise Unsupported(
                f"{name} asks for {shown(key)!r}, which this version of PEFT does not know: "
                "it would be left out without a word.",
                cure="Use an adapter without it.",
            )
    _require_known_start(raw, name)


def _require_known_start(raw: dict[str, Any], name: str) -> None:
    """Raise Unsupported where the base that the adapter was trained on cannot be had again."""
    start = raw.get("init_lora_weights", True)
    rewrites = isinstance(start, str) and start.lower() in REWRITES_BASE
    if not rewrites and start not in _PLAIN_STARTS:
        raise Unsupported(
            f"{name} was started with {shown(start)!r}, which changes the base's own weights.",
            cure="Convert it to plain LoRA where it was trained.",
        )
    if rewrites and raw.get("use_dora"):
        raise Unsupported(
            f"{name} is DoRA on a base that {shown(start)} changed, which cannot be plain LoRA.",
            cure="Merge it into its base where it was trained.",
        )


def _names_transformers(mapping: object) -> bool:
    """Tell what PEFT writes itself for a model without a task; it is read by nobody here."""
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return isinstance(library, str) and library.split(".", 1)[0] == "transformers"


_MERGE_ELSEWHERE = "Use an adapter without it, or merge it into its base where it was trained."
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "", "none")
_KNOWN = {field.name for field in dataclasses.fields(LoraConfig)}
_REFUSED = {
    "modules_to_save": "brings whole layers of its own (modules_to_save), which cannot be blended "
    "or weighted",
    "trainable_token_indices": "changes single tokens (trainable_token_indices), which cannot be "
    "blended or weighted",
    "bias": "changes the base's biases, so that switching it off would not restore the base",
    "lora_bias": "adds biases, which cannot be merged or blended",
    "layer_replication": "repeats layers of the base, which PEFT merges wrongly",
    "target_parameters": "changes parameters of mixtures of experts, which cannot be blended",
    "alora_invocation_tokens": "answers only after a special phrase (aLoRA), and cannot be merged",
    "use_qalora": "is a QALoRA adapter, which works on GPTQ bases only",
    "use_bdlora": "is a BD-LoRA adapter, which is not supported",
    "arrow_config": "is an Arrow mixture, which is not supported",
    "kasa_config": "is a KaSA adapter, which changes the base's own weights",
    "velora_config": "is a VeLoRA adapter, which is not supported",
    "megatron_config": "wants program code of its own to be loaded (megatron_config)",
    "monteclora_config": "is a MonteCLoRA adapter, which is not supported",
}
_FLAGS = ("use_rslora", "use_dora", "fan_in_fan_out")


def _normal_form(
    raw: dict[str, Any], names: list[str], layers: list[Target] | None, name: str
) -> LoraConfig:
    """Return a configuration with plain module names that is PEFT's own otherwise.

    A regular expression as target is replaced by the layers that the file holds: running a foreign
    one can take for ever (`(([a-z0-9_.])+)+!`).
    """
    try:
        return LoraConfig(
            r=_number(raw.get("r", 8), "r", name),
            lora_alpha=_number(raw.get("lora_alpha", 8), "lora_alpha", name),
            lora_dropout=_dropout(raw.get("lora_dropout", 0.0), name),
            **{flag: _flag(raw.get(flag), flag, name) for flag in _FLAGS},
            target_modules=_plain_targets(raw, names, layers),
            rank_pattern=_pattern(raw, "rank_pattern", name),
            alpha_pattern=_pattern(raw, "alpha_pattern", name),
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
    except (TypeError, ValueError) as error:
        raise ModelError(f"The {CONFIG} of {name} cannot be used: {error}") from None


def _plain_targets(raw: dict[str, Any], names: list[str], layers: list[Target] | None) -> list[str]:
    """Return the targets where they are plain names, else the layers of the file.

    Names of no layer that LoRA can act on here are left out: PEFT would put an empty adapter on the
    head.
    """
    targets = raw.get("target_modules")
    odd = raw.get("layers_to_transform") or raw.get("exclude_modules")
    if odd or not isinstance(targets, list) or not all(_is_plain(each) for each in targets):
        return list(names)
    known = {part for name in names for part in _suffixes(name)}
    known.update(part for layer in layers or () for part in _suffixes(layer.name))
    used = [each for each in targets if each in known]
    covered = set(used)
    return used if all(covered & _suffixes(name) for name in names) else list(names)


def _suffixes(name: str) -> set[str]:
    """Return every way to name a layer: `q_proj`, `self_attn.q_proj`..."""
    parts = name.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}


def _pattern(raw: dict[str, Any], field: str, name: str) -> dict[str, Any]:
    pattern = raw.get(field) or {}
    if isinstance(pattern, dict) and len(pattern) > _MAX_PATTERNS:
        raise Unsupported(f"The {field} of {name} has {len(pattern)} entries, which is too many.")
    if not isinstance(pattern, dict) or not all(_is_plain(key) for key in pattern):
        raise Unsupported(
            f"The {field} of {name} has regular expressions, which could hang the app.",
            cure="Write plain module names there.",
        )
    return {key: _number(value, field, name) for key, value in pattern.items()}


def _number(value: Any, field: str, name: str) -> Any:
    """Return a rank or alpha, ranks as whole numbers; raises where it cannot be one."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value <= 1e6:  # also refuses NaN
        raise ModelError(f"{name} has {field} = {shown(value)}, which cannot be right.")
    if field not in ("r", "rank_pattern"):
        return value
    if value != int(value) or value > MAX_RANK:
        raise Unsupported(f"{name} has rank {value}; whole ranks up to {MAX_RANK} can be added.")
    return int(value)


def _dropout(value: Any, name: str) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 <= value < 1:
        raise ModelError(f"{name} has lora_dropout = {shown(value)}, which cannot be right.")
    return float(value)


def _flag(value: Any, field: str, name: str) -> bool:
    if not isinstance(value, bool | None):
        raise ModelError(f"{name} has {field} = {shown(value)}, which is neither true nor false.")
    return bool(value)


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and _PLAIN.fullmatch(value) is not None


def _shapes(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape from the file's header; raises where there are no safe ones."""
    path = folder / WEIGHTS
    if not path.is_file():
        require_no_pickle([path.name for path in folder.iterdir()], name)
        raise ModelError(f"{name} has no {WEIGHTS}.", cure="The folder is not complete.")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            strange = [key for key, part in slices.items() if part.get_dtype() not in _DTYPES]
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"The weights of {name} are damaged or cut off ({error}).", cure="Download it again."
        ) from None
    if strange:
        raise Unsupported(f"{name} stores {strange[0]} in a type that adapters do not use.")
    return shapes


def require_no_pickle(files: list[str], name: str) -> None:
    """Raise Unsupported where an adapter without safetensors has its weights as pickle."""
    pickled = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl")))
    if pickled:
        raise Unsupported(
            f"{name} has its weights only as {shown(pickled[0])}, a format that can run code.",
            cure="Save it again as safetensors where it was trained.",
        )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors in full precision, as PEFT keeps adapters, under PEFT's names of today.

    Older versions called DoRA's magnitudes `.lora_magnitude_vector.weight`, in other shapes.
    """
    found = {key: tensor.float() for key, tensor in load_file(path).items()}
    return {
        key.removesuffix(".weight") if "magnitude" in key else key: tensor.flatten()
        if "magnitude" in key
        else tensor
        for key, tensor in found.items()
    }


def _layer_names(shapes: dict[str, tuple[int, ...]], name: str) -> list[str]:
    """Return the layers of an adapter file in order; foreign tensors in it raise Unsupported.

    Base weights hidden in an adapter file would overwrite the base without a word.
    """
    for key in shapes:
        if not _KEY.fullmatch(key):
            raise Unsupported(
                f"{name} holds {key[:120]!r}, which is not an adapter weight.",
                cure="Such a file could overwrite the base; only LoRA weights are accepted.",
            )
    if not shapes:
        raise ModelError(f"{name} holds no weights at all.")
    return list(dict.fromkeys(layer_of(key) for key in shapes))


_HEADS = ("lm_head", "embed_tokens", "embed_out", "wte")


def _require_same_layers(
    config: LoraConfig, names: list[str], layers: list[Target], name: str
) -> None:
    """Raise where the base lacks a layer of the file, or the file one that PEFT would create."""
    available = {layer.name for layer in layers}
    foreign = [each for each in names if each not in available]
    if any(each.rsplit(".", 1)[-1] in _HEADS for each in foreign):
        raise Unsupported(
            f"{name} changes the output head or the embeddings, which cannot be blended or merged "
            "safely.",
            cure="Use an adapter of the layers between them.",
        )
    if foreign:
        raise ModelError(
            f"{name} was made for another base: there is no {foreign[0]} here.",
            cure="Load the base it was made for.",
        )
    missing = {layer.name for layer in matched(config, layers)} - set(names)
    if missing:
        raise ModelError(
            f"{name} lacks weights for {len(missing)} of the layers it should change, "
            f"{min(missing)} among them.",
            cure="It was made for a smaller base, or its file is not complete.",
        )


def _fit(config: LoraConfig, layer: str) -> Fit:
    """Return rank, alpha and scaling of a layer as PEFT would compute them."""
    rank_key = get_pattern_key(list(config.rank_pattern), layer)
    alpha_key = get_pattern_key(list(config.alpha_pattern), layer)
    rank = int(config.rank_pattern.get(rank_key, config.r))
    alpha = float(config.alpha_pattern.get(alpha_key, config.lora_alpha))
    return Fit(layer, rank, alpha, alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _require_shapes(
    shapes: dict[str, tuple[int, ...]],
    fits: list[Fit],
    layers: list[Target] | None,
    config: LoraConfig,
    name: str,
) -> None:
    """Raise where a tensor is missing or has a shape that its layer or rank does not allow."""
    sizes = {layer.name: layer for layer in layers or ()}
    for fit in fits:
        prefix = f"base_model.model.{fit.layer}.lora_"
        first, second = shapes.get(prefix + "A.weight"), shapes.get(prefix + "B.weight")
        size = shapes.get(prefix + "magnitude_vector") or shapes.get(
            prefix + "magnitude_vector.weight"
        )
        if first is None or second is None or (config.use_dora and size is None):
            raise ModelError(f"{name} lacks a part of {fit.layer}.", cure="Download it again.")
        if size is not None and not config.use_dora:
            raise ModelError(f"{name} brings DoRA magnitudes but says that it is not DoRA.")
        if len(first) != 2 or len(second) != 2:
            raise ModelError(f"{fit.layer} of {name} has shapes {first} and {second}: no matrices.")
        base = sizes.get(fit.layer)
        wanted_in = base.inputs if base else first[-1]
        wanted_out = base.outputs if base else second[0]
        if first != (fit.rank, wanted_in) or second != (wanted_out, fit.rank):
            raise ModelError(
                f"{fit.layer} of {name} has shapes {first} and {second}, which do not fit "
                f"rank {fit.rank} on a layer of {wanted_in} by {wanted_out}.",
                cure="It was made for another base, or its configuration was changed.",
            )
        if size is not None and math.prod(size) != wanted_out:
            raise ModelError(f"The DoRA magnitudes of {fit.layer} in {name} do not fit this base.")
