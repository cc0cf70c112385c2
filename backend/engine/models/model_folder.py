"""A base on disk: finding and checking its folder, its tokenizer, its modules without weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.models.auto import tokenization_auto
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from backend.catalogue.chat_templates import CHAT_TEMPLATES
from backend.catalogue.packaged_models import PACKAGED_MODELS
from backend.engine.core import hub_download, template_syntax
from backend.engine.core.job_control import Control
from backend.engine.models import (
    config_file,
    model_limits,
    packaged_model,
    stored_quantization,
    text_part,
    tokenizer_traits,
)
from backend.engine.models.gguf import converted, parts
from backend.errors import ModelError, NotFound, Unsupported
from backend.files import read_limits
from backend.files.foreign_files import read_json
from backend.files.safetensors_header import title, weight_files
from backend.hub_address import gguf_file
from backend.permissions import looks_like_path
from backend.settings import STARTER, Settings

PACKAGES = {
    ".model": {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"},
    ".tiktoken": {"tiktoken": "tiktoken"},
}
"""What reads a tokenizer's file where there is no tokenizer.json."""


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
    return hub_download.fetch_model(source, revision, control, _require_readable)


def _require_readable(folder: Path) -> None:
    """Raise ModelError or Unsupported where no weights could make the folder a base."""
    name = title(folder)
    config = config_file.read(folder / config_file.NAME, name)
    config_file.known(config, name)
    stored_quantization.of(folder, config, name)


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
    file, name = folder / config_file.NAME, title(folder)
    if (folder / "adapter_config.json").exists() and file.exists() and weight_files(folder):
        raise ModelError(
            f"{name} holds a base model and an adapter, which Transformers would load as one.",
            cure="Move adapter_config.json and adapter_model.safetensors to another folder, then "
            "load the base and add the adapter.",
        )
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{name} holds an adapter, not a base model.",
            cure="Load the base it was made for first, then add the adapter.",
        )
    if not file.exists():
        raise ModelError(f"{name} has no config.json, so it is not a model folder.")
    model_limits.require_bounded_files(folder, name)
    config = config_file.read(file, name)
    if not weight_files(folder):
        raise _without_weights(folder, name)
    return config


def _without_weights(folder: Path, name: str) -> ModelError | Unsupported:
    """Return why a folder's weight files are not read, if it has any."""
    pickled = [*sorted(folder.glob("*.bin")), *sorted(folder.glob("*.pt*"))]
    other = sorted(folder.glob("*.safetensors"))
    if other:
        return ModelError(
            f"{name} has its weights in {other[0].name}, but Transformers reads model.safetensors, "
            "or the files that model.safetensors.index.json lists.",
            cure="Rename it to model.safetensors if it is the only one and holds Transformers' own "
            "names of weights; else download the folder again, or choose another base.",
        )
    if pickled:
        return Unsupported(
            f"{name} has its weights only as {pickled[0].name}, a format that can run code.",
            cure="Convert it to safetensors first.",
        )
    return ModelError(
        f"{name} has a config.json but no weights (no model.safetensors).",
        cure="Only safetensors files are read: choose another base, or convert it first.",
    )


def require_known(folder: Path, config: dict[str, Any]) -> None:
    """Raise where Transformers does not know the architecture, or only for another task."""
    config_file.known(config, title(folder))


def require_held(folder: Path, config: dict[str, Any]) -> None:
    """Raise ModelError where the weight files are too small for the configuration."""
    name = title(folder)
    model_limits.require_held(config_file.known(config, name), weight_files(folder), name)


def read_config(source: Path | dict[str, Any]) -> PretrainedConfig:
    """Return the configuration from a config.json or its content, without any other file.

    Raises ModelError or Unsupported where it is not a causal language model's.
    """
    if isinstance(source, dict):
        return config_file.known(source, "This configuration")
    name = title(source.parent)
    return config_file.known(config_file.read(source, name), name)


def skeleton(folder: Path) -> torch.nn.Module:
    """Build the model's modules on the meta device, to match names and count parameters.

    Raises ModelError where the weight files are too small for them.
    """
    require_held(folder, check_folder(folder))
    with torch.device("meta"):
        config = config_file.of_folder(folder)
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model_limits.require_fits(model, weight_files(folder), title(folder))
    return model


def context_length(folder: Path) -> int:
    """Return a base's context length in tokens; 0 where its config does not say."""
    return text_part.context_length(config_file.of_folder(folder))


def about_code(folder: Path, config: dict[str, Any]) -> str:
    """Return a sentence about program code in a folder, which is never run; empty without any."""
    if not config_file.brings_code(config) and not config_file.brings_code(_tokenizer_file(folder)):
        return ""
    return (
        "The model brings its own program code, which is not used: it is read with the code of "
        f"Transformers for {config.get('model_type')}."
    )


def read_tokenizer(folder: Path, template: str = "own") -> PreTrainedTokenizerBase:
    """Read a base's tokenizer, with a chat template from the catalogue if it has no readable one.

    Raises ModelError where there is no tokenizer, and Unsupported where it needs something that is
    not here, or already has a template.
    """
    name, config = title(folder), config_file.of_folder(folder)
    _require_own_class(folder, name)
    try:
        with _tokenizer_file_without_code():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, config=config, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:
        _require_libraries(folder, name)
        raise ModelError(f"{name} has no readable tokenizer.", details=str(error)) from error
    _require_short_template(tokenizer.chat_template, name)
    named = tokenizer.chat_template
    if isinstance(named, dict) and named and "default" not in named:
        tokenizer.chat_template = {**named, "default": next(iter(named.values()))}
    if template != "own":
        if tokenizer.chat_template and not template_syntax.fault(tokenizer):
            raise Unsupported(
                f"{name} has its own chat template, which it was trained with.",
                cure="Set Chat template to own.",
            )
        tokenizer.chat_template = CHAT_TEMPLATES[template].jinja
    tokenizer_traits.set_embedded(tokenizer, _embedded(config))
    tokenizer_traits.complete(tokenizer, _end_ids(folder))
    return tokenizer


def _embedded(config: PretrainedConfig) -> int:
    """Return how many tokens have an embedding; a model without that number is never limited."""
    rows = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    return rows if isinstance(rows, int) else read_limits.SIZE


def _end_ids(folder: Path) -> list[int]:
    """Return the ids that end a text, as generation_config.json or config.json says.

    A number that config.json does not say, but its class has by default, may be any token's.
    """
    files = (_json(folder / name) for name in ("generation_config.json", config_file.NAME))
    said = next((each["eos_token_id"] for each in files if each.get("eos_token_id")), None)
    listed = said if isinstance(said, list) else [said]
    return [each for each in listed if isinstance(each, int) and not isinstance(each, bool)]


def _tokenizer_file(folder: Path) -> dict[str, Any]:
    return _json(folder / "tokenizer_config.json")


def _json(file: Path) -> dict[str, Any]:
    """Return a file's object; empty where there is none, which its own reader then reports."""
    try:
        found = read_json(file, read_limits.TOKENIZER_BYTES, file.name)
    except (OSError, ValueError, RecursionError, ModelError):
        return {}
    return found if isinstance(found, dict) else {}


def _require_own_class(folder: Path, name: str) -> None:
    """Raise Unsupported where a tokenizer is program code that Transformers does not have."""
    said = _tokenizer_file(folder)
    kind = said.get("tokenizer_class")
    if not config_file.brings_code(said) or not isinstance(kind, str):
        return
    plain = kind.removesuffix("Fast")
    if not any(tokenizer_class_from_name(each) for each in (kind, plain, f"{plain}Fast")):
        raise Unsupported(
            f"{name} needs its own program code for its tokenizer ({kind[:60]}), and the workbench "
            "never runs such code.",
            cure="Choose a model whose tokenizer is part of Transformers.",
        )


@contextmanager
def _tokenizer_file_without_code() -> Iterator[None]:
    """Let Transformers read tokenizer_config.json as if it named no program code.

    Transformers 5.23 skips its choice of the right class where code is named, even if that code is
    not run: a byte-level tokenizer that says LlamaTokenizer would split texts in another way.
    """
    original = tokenization_auto.get_tokenizer_config

    def without_code(*arguments: Any, **options: Any) -> dict[str, Any]:
        return config_file.without_code(original(*arguments, **options))

    tokenization_auto.get_tokenizer_config = without_code
    try:
        yield
    finally:
        tokenization_auto.get_tokenizer_config = original


def _require_libraries(folder: Path, name: str) -> None:
    """Raise Unsupported where a tokenizer could not be read because a package is missing."""
    if (folder / "tokenizer.json").is_file():
        return
    for suffix, packages in PACKAGES.items():
        files = sorted(folder.glob(f"*{suffix}"))
        missing = [each for each, module in packages.items() if not _is_installed(module)]
        if files and missing:
            raise Unsupported(
                f"{name} has its tokenizer only as {files[0].name}, and the package {missing[0]} "
                "that reads it is not installed.",
                cure=f"Install {' and '.join(missing)}, or choose a copy of the model that has a "
                "tokenizer.json.",
            )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


def _require_short_template(template: Any, name: str) -> None:
    """Raise ModelError where a chat template (or all named ones together) is implausibly long."""
    length = len(str(template or ""))
    if length > read_limits.TEMPLATE_BYTES:
        raise ModelError(
            f"The chat template of {name} has {length:,} characters, and at most "
            f"{read_limits.TEMPLATE_BYTES:,} are read.",
            cure="Download it again.",
        )
