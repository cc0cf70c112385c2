"""A base's config.json: read, checked, and without what Transformers would stumble over or run.

Knows nothing of weights or tokenizers.
"""

import math
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PretrainedConfig,
    __version__,
)

from backend.engine.models import model_limits
from backend.errors import ModelError, Unsupported
from backend.files import read_limits
from backend.files.foreign_files import read_json
from backend.files.safetensors_header import title

NAME = "config.json"
FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
"""How Transformers 5 writes numbers that JSON does not have: {"__float__": "Infinity"}."""
DTYPES = ("float32", "bfloat16", "float16")
CODE = "auto_map"
"""Names program code in the model's own files, which Transformers would run with consent."""
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""Which implementation computes attention; it is chosen here, and the named one may be missing."""
NOT_KEPT = (CODE, "quantization_config", *ATTENTION)


def read(file: Path, name: str) -> dict[str, Any]:
    """Return a config.json's content; raises ModelError where it is not a JSON object."""
    try:
        config = _with_floats(read_json(file, read_limits.CONFIG_BYTES, f"{name}/{NAME}"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}/{NAME} is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{name}/{NAME} is not a JSON object.")
    return config


def of_folder(folder: Path) -> PretrainedConfig:
    """Return a folder's configuration without quantisation; raises ModelError or Unsupported."""
    name = title(folder)
    config = known(read(folder / NAME, name), name)
    config.name_or_path = str(folder)
    return config


def known(config: dict[str, Any], name: str) -> PretrainedConfig:
    """Return the configuration that Transformers' own code makes of a config.json's content.

    Raises ModelError or Unsupported where it is not a causal language model's.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise _unknown(config, name)
    if kind == "mistral" and "layer_types" in config:
        kind = "ministral"  # as AutoConfig of Transformers 5.23 does
    model_limits.require_plausible(config, name)
    try:
        found: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(_usable(config))
    except Exception as error:
        raise ModelError(
            f"{name}/{NAME} cannot be used: {first_line(error)}", details=str(error)
        ) from error
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Unsupported(
            f"{name} is a {kind} model, which does not continue text.",
            cure="Choose a causal language model, such as Llama, Qwen or Gemma.",
        )
    model_limits.require_sizes(found, name)
    return _with_own_padding(found)


def brings_code(config: dict[str, Any]) -> bool:
    """Tell whether a configuration of a model or tokenizer names program code in its own files."""
    return bool(config.get(CODE))


def without_code(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that names no program code of its own."""
    return {key: value for key, value in config.items() if key != CODE}


def first_line(error: BaseException) -> str:
    """Return the part of an error that says what happened, in at most 200 characters."""
    first, *rest = str(error).strip().splitlines() or ["no reason given"]
    if first.endswith(":") and rest:  # the reason itself is on the next line
        first = f"{first} {rest[0].strip()}"
    return first[:200]


def _unknown(config: dict[str, Any], name: str) -> Unsupported:
    shown = f"{str(config.get('model_type'))[:60]!r}"
    if brings_code(config):
        return Unsupported(
            f"{name} needs its own program code for the architecture {shown}, which Transformers "
            f"{__version__} does not know, and the workbench never runs such code.",
            cure="Choose a model whose architecture is part of Transformers.",
        )
    return Unsupported(
        f"{name} has the architecture {shown}, not known to Transformers {__version__}.",
        cure="Choose a base with a known architecture, such as Llama, Qwen or Gemma.",
    )


def _usable(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without code, quantisation, and dtypes that no model can be built in.

    The dtype is chosen when loading, and how weights are quantised is in `stored_quantization`.
    """
    kept = {}
    for key, value in config.items():
        if key in NOT_KEPT or (key in ("dtype", "torch_dtype") and value not in DTYPES):
            continue
        kept[key] = _usable(value) if isinstance(value, dict) else value
    return kept


def _with_own_padding(config: PretrainedConfig) -> PretrainedConfig:
    """Drop a padding token that has no embedding: no module can be built with it (PyTorch 2.13)."""
    for each in {
        id(each): each for each in (config, config.get_text_config(decoder=True))
    }.values():
        pad, rows = getattr(each, "pad_token_id", None), getattr(each, "vocab_size", None)
        if isinstance(pad, int) and isinstance(rows, int) and not 0 <= pad < rows:
            each.pad_token_id = None
    return config


def _with_floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_floats(each) for each in value]
    if not isinstance(value, dict):
        return value
    tag = value.get("__float__")
    if len(value) == 1 and isinstance(tag, str) and tag in FLOATS:
        return FLOATS[tag]
    return {key: _with_floats(each) for key, each in value.items()}
