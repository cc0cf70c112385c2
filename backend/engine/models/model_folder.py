"""A base on disk: finding and checking its folder, its tokenizer, its modules without weights."""

from pathlib import Path, PurePosixPath
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    __version__,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from backend.catalogue.chat_templates import CHAT_TEMPLATES
from backend.catalogue.packaged_models import PACKAGED_MODELS
from backend.engine.core import hub_download
from backend.engine.core.job_control import Control
from backend.engine.models import model_limits, packaged_model
from backend.engine.models.gguf import converted, parts
from backend.errors import ModelError, NotFound, Unsupported
from backend.files import read_limits
from backend.files.foreign_files import read_json
from backend.files.safetensors_header import title, weight_files
from backend.hub_address import gguf_file
from backend.permissions import looks_like_path
from backend.settings import STARTER, Settings


def find(
    source: str, revision: str | None, control: Control, models_dir: Path | None = None
) -> Path:
    """Return the folder of a source; a Hub id is downloaded, a packaged model or GGUF converted.

    `models_dir` is for converted models; without it, that of the default workspace is used.
    """
    place = models_dir or Settings().models_dir
    if source == "starter":
        return STARTER / "model"
    if source in PACKAGED_MODELS:
        return packaged_model.converted(PACKAGED_MODELS[source], place, control)
    if files := gguf_files(source, revision, control):
        return converted.folder_of(files, place, control)
    if looks_like_path(source):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise NotFound(
                f"There is no folder {source!r}.",
                cure="Check the path; a Hub id looks like HuggingFaceTB/SmolLM2-135M.",
            )
        return folder.resolve()
    return hub_download.fetch_model(source, revision, control)


def gguf_files(source: str, revision: str | None, control: Control) -> tuple[Path, ...]:
    """Return the GGUF files that a source names; those on the Hub are downloaded. Empty for others.

    Files that do not exist are named, too: they may have been converted before.
    """
    if (file := gguf_file(source)) is not None:
        names = parts.part_names(PurePosixPath(file.file).name)
        wanted = [str(PurePosixPath(file.file).with_name(name)) for name in names]
        return hub_download.fetch_files(file.repo_id, wanted, file.revision or revision, control)
    if not looks_like_path(source):
        return ()
    path = Path(source).expanduser()
    if path.is_dir():
        found = parts.of_folder(path)
    else:
        found = path if parts.is_gguf(source) else None
    if found is None:
        return ()
    return tuple(found.absolute().with_name(name) for name in parts.part_names(found.name))


def display_name(source: str, folder: Path) -> str:
    """Return the name of a base to show."""
    if parts.is_gguf(source) and looks_like_path(source):
        return Path(source).name
    return folder.name if looks_like_path(source) else source


def check_folder(folder: Path) -> dict[str, Any]:
    """Return the folder's config; raises where it is not a model that can be loaded safely."""
    config_file, name = folder / "config.json", title(folder)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{name} holds an adapter, not a base model.",
            cure="Load the base it was made for first, then add the adapter.",
        )
    if not config_file.exists():
        raise ModelError(f"{name} has no config.json, so it is not a model folder.")
    model_limits.require_bounded_files(folder, name)
    config = _read_json(config_file, name)
    _require_no_code(config, name)
    if not weight_files(folder):
        pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt*")
        )
        if pickled:
            raise Unsupported(
                f"{name} has its weights only as {pickled[0]}, a format that can run code.",
                cure="Convert it to safetensors first.",
            )
        raise ModelError(
            f"{name} has a config.json but no weights (no model.safetensors).",
            cure="Only safetensors files are read: choose another base, or convert it first.",
        )
    return config


def require_known(folder: Path, config: dict[str, Any]) -> None:
    """Raise where Transformers does not know the architecture, or only for another task."""
    _known(config, title(folder))


def require_held(folder: Path, config: dict[str, Any]) -> None:
    """Raise ModelError where the weight files are too small for the configuration."""
    name = title(folder)
    model_limits.require_held(_known(config, name), weight_files(folder), name)


def read_config(source: Path | dict[str, Any]) -> PretrainedConfig:
    """Return the configuration from a config.json or its content, without any other file.

    Raises ModelError or Unsupported where it is not a causal language model's.
    """
    if isinstance(source, dict):
        return _known(source, "This configuration")
    name = title(source.parent)
    config = _read_json(source, name)
    _require_no_code(config, name)
    return _known(config, name)


def _known(config: dict[str, Any], name: str) -> PretrainedConfig:
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise Unsupported(
            f"{name} has the architecture {kind!r}, not known to Transformers {__version__}.",
            cure="Choose a base with a known architecture, such as Llama, Qwen or Gemma.",
        )
    model_limits.require_plausible(config, name)
    try:
        known: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(config)
    except Exception as error:
        raise ModelError(
            f"{name}/config.json cannot be used: {first_line(error)}", details=str(error)
        ) from error
    if type(known) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Unsupported(
            f"{name} is a {kind} model, which does not continue text.",
            cure="Choose a causal language model, such as Llama, Qwen or Gemma.",
        )
    model_limits.require_sizes(known, name)
    return known


def _read_json(file: Path, name: str) -> dict[str, Any]:
    try:
        config = read_json(file, read_limits.CONFIG_BYTES, f"{name}/config.json")
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}/config.json is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{name}/config.json is not a JSON object.")
    return config


def _require_no_code(config: dict[str, Any], name: str) -> None:
    if "auto_map" in config:
        raise Unsupported(
            f"{name} contains its own program code, which the workbench never runs.",
            cure="Choose a model whose architecture is part of Transformers.",
        )


def skeleton(folder: Path) -> torch.nn.Module:
    """Build the model's modules on the meta device, to match names and count parameters.

    Raises ModelError where the weight files are too small for them.
    """
    require_held(folder, check_folder(folder))
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model_limits.require_fits(model, weight_files(folder), title(folder))
    return model


def context_length(folder: Path) -> int:
    """Return a base's context length in tokens; 0 where its config does not say."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return int(getattr(config, "max_position_embeddings", 0) or 0)


def read_tokenizer(folder: Path, template: str = "own") -> PreTrainedTokenizerBase:
    """Read a base's tokenizer, with a chat template from the catalogue if it has none itself.

    Raises ModelError where there is no tokenizer, and Unsupported where it already has a template.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise ModelError(
            f"{title(folder)} has no readable tokenizer.", details=str(error)
        ) from error
    _require_short_template(tokenizer.chat_template, title(folder))
    named = tokenizer.chat_template
    if isinstance(named, dict) and named and "default" not in named:
        tokenizer.chat_template = {**named, "default": next(iter(named.values()))}
    if template != "own":
        if tokenizer.chat_template:
            raise Unsupported(
                f"{title(folder)} has its own chat template, which it was trained with.",
                cure="Set Chat template to own.",
            )
        tokenizer.chat_template = CHAT_TEMPLATES[template].jinja
    return tokenizer


def _require_short_template(template: Any, name: str) -> None:
    """Raise ModelError where a chat template (or all named ones together) is implausibly long."""
    length = len(str(template or ""))
    if length > read_limits.TEMPLATE_BYTES:
        raise ModelError(
            f"The chat template of {name} has {length:,} characters, and at most "
            f"{read_limits.TEMPLATE_BYTES:,} are read.",
            cure="Download it again.",
        )


def first_line(error: BaseException) -> str:
    first, *rest = str(error).strip().splitlines() or ["no reason given"]
    if first.endswith(":") and rest:  # the reason itself is on the next line
        first = f"{first} {rest[0].strip()}"
    return first[:200]
