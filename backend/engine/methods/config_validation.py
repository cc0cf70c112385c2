"""Validation of adapter configurations from outside, and their normal form with plain names.

A foreign configuration is not trusted. Anything more than LoRA on linear layers is refused with the
reason; regular expressions are never run, and paths are never followed. Knows nothing of tensors.
"""

import codecs
import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from peft import LoraConfig

from backend.catalogue import init_methods
from backend.engine.methods import scaling
from backend.engine.methods.targets import only_these, parameter_names
from backend.engine.models.linear_layers import Target
from backend.errors import ModelError, Unsupported
from backend.files import read_limits
from backend.files.foreign_files import read_bytes

CONFIG = "adapter_config.json"
MAX_RANK = 4096
_MAX_PATTERNS = 1000  # each pattern is tested on each layer
_MAX_COMPARED = 2_000_000  # a second
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_ANCHORED = re.compile(r"\^?(?:[A-Za-z0-9_.-]|\\[.-]){1,200}\$?")
"""A module path as PEFT recommends it: anchored, with plain or escaped dots.

It repeats nothing and has no alternatives, so that PEFT matches it in no time.
"""
_ANYWHERE = r".*\."
"""What PEFT 0.21.2 puts before the names of experts in patterns; its matcher allows any parent."""


def read_raw_config(folder: Path, name: str) -> dict[str, Any]:
    """Return a folder's configuration unchanged; raises ModelError where there is none."""
    path = folder / CONFIG
    if not path.exists():
        raise ModelError(f"{name} has no {CONFIG}, so it is not an adapter.")
    try:
        content = json.loads(_text(path, name)[0])
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name} has no readable {CONFIG}: {shown(error, 200)}.") from None
    if not isinstance(content, dict):
        raise ModelError(f"The {CONFIG} of {name} is not a JSON object.")
    return content


def starts_with_a_mark(folder: Path, name: str) -> bool:
    """Tell whether a readable configuration starts with a byte-order mark."""
    return _text(folder / CONFIG, name)[1]


def _text(path: Path, name: str) -> tuple[str, bool]:
    """Return a configuration's text without a byte-order mark, and whether it had one.

    Editors on Windows write UTF-8 or UTF-16 with a mark, which JSON does not allow.
    """
    content = read_bytes(path, read_limits.ADAPTER_TEXT_BYTES, f"The {CONFIG} of {name}")
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding), True
    return content.decode("utf-8"), False


_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def shown(value: object, length: int = 40) -> str:
    """Return a foreign value as safe text: short, on one line, valid Unicode."""
    text = str(value)[:length].encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in text)


def require_plain_lora(raw: dict[str, Any], name: str) -> None:
    """Raise Unsupported, with the reason, where an adapter is more than LoRA on linear layers."""
    kind = shown(raw.get("peft_type"))
    if kind != "LORA":
        article = "an" if kind[:1].upper() in set("AEIO") else "a"
        raise Unsupported(
            f"{name} is {article} {kind} adapter.",
            cure="LoRA, rsLoRA and DoRA adapters can be added.",
        )
    for field, sentence in _REFUSED.items():
        value = raw.get(field)
        if value not in _NOTHING:
            raise Unsupported(f"{name} {sentence}.", cure=_MERGE_ELSEWHERE)
    mapping = raw.get("auto_mapping")
    if mapping not in _NOTHING and not _names_transformers(mapping):
        raise Unsupported(
            f"{name} needs its own program code to be loaded (auto_mapping).",
            cure=_MERGE_ELSEWHERE,
        )
    for key in unknown_fields(raw):
        if not _changes_nothing(key, raw):
            raise Unsupported(
                f"{name} uses the option {shown(key)!r} = {shown(raw[key])}, which this version of "
                "PEFT does not know and would silently ignore.",
                cure="Use an adapter without it.",
            )
    _require_known_start(raw, name)


def unknown_fields(raw: dict[str, Any]) -> list[str]:
    """Return the fields that PEFT does not know; those of an accepted adapter change nothing."""
    return [key for key in raw if key not in _KNOWN]


def _changes_nothing(key: str, raw: dict[str, Any]) -> bool:
    """Tell whether an unknown field is off, says where the adapter comes from, or belongs to one
    that is off: `x_size` where `use_x` is false."""
    if key in _SAYS_ONLY or _is_off(raw[key]):
        return True
    parts = key.split("_")
    stems = {"_".join(parts[:end]) for end in range(1, len(parts))} - {"lora"}
    return any(raw.get(f"use_{stem}") is False for stem in stems)


def _is_off(value: object) -> bool:
    """Tell whether a value is nothing, or an object in which everything is nothing."""
    if isinstance(value, dict):
        return all(inner in _NOTHING for inner in value.values())
    return value in _NOTHING


def _require_known_start(raw: dict[str, Any], name: str) -> None:
    """Raise Unsupported where the changed base that the adapter was trained on is not available."""
    start = raw.get("init_lora_weights", True)
    rewrites = init_methods.is_repeatable(start)
    if not rewrites and not init_methods.leaves_the_base(start):
        raise Unsupported(
            f"{name} was initialised with {shown(start)!r}, which changes the base's own weights.",
            cure="Convert it to plain LoRA where it was trained.",
        )
    if rewrites and raw.get("use_dora"):
        raise Unsupported(
            f"{name} is DoRA on a base changed by {shown(start)}, which cannot become plain LoRA.",
            cure="Merge it into its base where it was trained.",
        )


def _names_transformers(mapping: object) -> bool:
    """Tell whether this is what PEFT itself writes for a model without a task; it is not used."""
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return isinstance(library, str) and library.split(".", 1)[0] == "transformers"


_MERGE_ELSEWHERE = "Use an adapter without it, or merge it into its base where it was trained."
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "", "none")
_SAYS_ONLY = {
    "unsloth_fixed", "unsloth_version", "transformers_version", "torch_version", "library_name",
    "model_name", "adapter_name", "created_at", "author", "description", "license", "tags",
    "comment", "_comment", "version",
}  # fmt: skip
"""Fields of other programs that describe an adapter, and that no program computes with."""
_KNOWN = {field.name for field in dataclasses.fields(LoraConfig)}
_REFUSED = {
    "modules_to_save": "contains whole layers (modules_to_save), which cannot be blended "
    "or weighted",
    "trainable_token_indices": "changes single tokens (trainable_token_indices), which cannot be "
    "blended or weighted",
    "bias": "changes the base's biases, so that switching it off would not restore the base",
    "lora_bias": "adds biases, which cannot be merged or blended",
    "layer_replication": "repeats layers of the base, which PEFT merges wrongly",
    "alora_invocation_tokens": "answers only after a special phrase (aLoRA), and cannot be merged",
    "use_qalora": "is a QALoRA adapter, which works on GPTQ bases only",
    "use_bdlora": "is a BD-LoRA adapter, which is not supported",
    "arrow_config": "is an Arrow mixture, which is not supported",
    "kasa_config": "is a KaSA adapter, which changes the base's own weights",
    "velora_config": "is a VeLoRA adapter, which is not supported",
    "megatron_config": "needs its own program code to be loaded (megatron_config)",
    "monteclora_config": "is a MonteCLoRA adapter, which is not supported",
}
_NOT_OF_PARAMETERS = ("use_dora", "lora_dropout", "fan_in_fan_out")
_FLAGS = ("use_rslora", "use_dora", "fan_in_fan_out")


def parameter_targets(raw: dict[str, Any], name: str) -> list[str]:
    """Return `target_parameters`, which PEFT compares as plain text; raises where they are not."""
    found = raw.get("target_parameters") or []
    if not isinstance(found, list) or not all(_is_plain(each) for each in found):
        raise ModelError(f"The target_parameters of {name} are not a list of plain names.")
    if len(found) > _MAX_PATTERNS:
        raise Unsupported(f"The target_parameters of {name} have too many entries ({len(found)}).")
    odd = [field for field in _NOT_OF_PARAMETERS if raw.get(field)]
    if init_methods.is_repeatable(raw.get("init_lora_weights", True)):
        odd.append("init_lora_weights")
    if found and odd:
        raise ModelError(f"{name} has {odd[0]} and target_parameters, which PEFT cannot combine.")
    return found


def normal_form(
    raw: dict[str, Any],
    names: list[str],
    layers: list[Target] | None,
    name: str,
    *,
    parameters: Collection[str] = (),
) -> LoraConfig:
    """Return a PEFT configuration with plain module names.

    `names` are the layers of the file, and `parameters` its parameters, by PEFT's names for them. A
    regular expression as target is replaced by the names of the layers, because a foreign
    expression can run forever (`(([a-z0-9_.])+)+!`).
    """
    every = [*names, *parameters]
    wanted = parameter_targets(raw, name)
    if parameters and layers is not None:
        wanted = parameter_names(parameters, layers)
    try:
        return LoraConfig(
            r=_number(raw.get("r", 8), "r", name),
            lora_alpha=_number(raw.get("lora_alpha", 8), "lora_alpha", name),
            lora_dropout=_dropout(raw.get("lora_dropout", 0.0), name),
            **{flag: _flag(raw.get(flag), flag, name) for flag in _FLAGS},
            target_modules=_plain_targets(raw, names, layers),
            target_parameters=wanted or None,
            rank_pattern=_used(pattern(raw, "rank_pattern", name, len(every)), every),
            alpha_pattern=_used(pattern(raw, "alpha_pattern", name, len(every)), every),
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
    except (TypeError, ValueError) as error:
        raise ModelError(f"The {CONFIG} of {name} cannot be used: {error}") from None


def _plain_targets(raw: dict[str, Any], names: list[str], layers: list[Target] | None) -> list[str]:
    """Return the targets where they are plain names, else the layers of the file.

    Names without a layer that LoRA can change here are left out; PEFT would put an empty adapter on
    the output head.
    """
    targets = raw.get("target_modules")
    odd = raw.get("layers_to_transform") or raw.get("exclude_modules")
    if odd or not isinstance(targets, list) or not all(_is_plain(each) for each in targets):
        return list(names)
    known = {part for name in names for part in _suffixes(name)}
    known.update(part for layer in layers or () for part in _suffixes(layer.name))
    used = [each for each in targets if each in known]
    covered = set(used)
    if not all(covered & _suffixes(name) for name in names):
        return list(names)
    return used if layers is None else only_these(used, layers)


def _suffixes(name: str) -> set[str]:
    """Return every way to name a layer: `q_proj`, `self_attn.q_proj`..."""
    parts = name.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}


def pattern(raw: dict[str, Any], field: str, name: str, layers: int) -> dict[str, Any]:
    """Return ranks or alphas by module names, for an adapter with so many layers.

    Raises Unsupported for true regular expressions, and for more entries than can be compared.
    """
    entries = raw.get(field) or {}
    if isinstance(entries, dict) and (
        len(entries) > _MAX_PATTERNS or len(entries) * layers > _MAX_COMPARED
    ):
        raise Unsupported(f"The {field} of {name} has too many entries ({len(entries)}).")
    if isinstance(entries, dict) and raw.get("target_parameters"):
        entries = {key.removeprefix(_ANYWHERE): value for key, value in entries.items()}
    if not isinstance(entries, dict) or not all(_ANCHORED.fullmatch(key) for key in entries):
        raise Unsupported(
            f"The {field} of {name} has regular expressions, which could block the app.",
            cure="Use plain module names there.",
        )
    return {key: _number(value, field, name) for key, value in entries.items()}


def _used(entries: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the entries that match a layer of the file; PEFT ignores the others with a warning."""
    return {
        key: value for key, value in entries.items() if scaling.matching_key([key], names) == key
    }


def _number(value: Any, field: str, name: str) -> Any:
    """Return a rank (a whole number) or an alpha; raises where the value is invalid."""
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
