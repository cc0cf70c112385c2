"""A base model from a Python package: its GGUF file becomes a plain folder, once per workspace.

The file is read only if it is the known one, byte for byte, so it needs no limits. Knows nothing of
loading the folder afterwards.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from backend.catalogue.packaged_models import PackagedModel, is_complete
from backend.engine.core import devices, memory
from backend.engine.core.job_control import Control
from backend.errors import InvalidRequest, ModelError, NotFound, VerificationFailed
from backend.files.atomic_files import new_folder, remove_partials

STALE_S = 3600.0
"""An unfinished folder of this age was left behind: converting takes less than a minute."""


def converted(model: PackagedModel, models_dir: Path, control: Control) -> Path:
    """Return the model's folder in the workspace; the first call converts the package's file.

    Raises NotFound if the package is not installed, ModelError if its file is not the known one,
    OutOfMemory, DiskFull, Stopped or VerificationFailed; then there is no folder.
    """
    target = model.folder_in(models_dir)
    remove_partials(target, older_than_s=STALE_S)
    if is_complete(target):
        return target
    control.progress(f"Checking the file of {model.title}", 0.0, force=True)
    file = _known_file(model)
    memory.require(model.converting_bytes, devices.CPU, f"Converting {model.title}")
    try:
        _convert(model, file, target, control)
    except InvalidRequest:  # another app was faster
        if not is_complete(target):
            raise
    finally:
        memory.release(devices.CPU)
    return target


def _known_file(model: PackagedModel) -> Path:
    """Return the installed file; raises NotFound or ModelError if it cannot be used."""
    file = model.find()
    if file is None or find_spec("gguf") is None:
        missing = model.package.replace("_", "-") if file is None else "gguf"
        raise NotFound(
            f"{model.name} needs the Python package {missing}, which is not installed.",
            cure=f"Install it and start the app with: {model.command}",
        )
    if file.stat().st_size != model.file_bytes or _digest(file) != model.sha256:
        raise ModelError(
            f"{file.name} in the package {file.parent.name} is not the file that was published, so "
            "it is not read.",
            cure=f"Remove the package with pip, then install it again with: {model.command}",
        )
    return file


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _convert(model: PackagedModel, file: Path, target: Path, control: Control) -> None:
    """Write the folder, read it back and compare it, and only then put it in place."""
    control.progress(f"Converting {model.title}, once: some 20 seconds", 0.1, force=True)
    tokenizer = read_tokenizer(file)
    control.check_stop()
    plain = read_model(file, tokenizer)
    tokenizer.model_max_length = plain.config.max_position_embeddings
    with new_folder(target) as folder:
        control.check_stop()
        control.progress(f"Writing {model.title}", 0.7, force=True)
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card(model), encoding="utf-8")
        control.check_stop()
        control.progress(f"Reading {model.title} back", 0.8, force=True)
        require_same(folder, plain)


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a GGUF file, with its chat template."""
    # The class that AutoTokenizer chooses too, but only after it has read the whole file again.
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True
    )
    # SmolLM2's own tokenizer splits digits; the GGUF reader of Transformers 5.23 leaves that out.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    for origin in ("is_local", "local_files_only"):  # saved with the tokenizer otherwise
        tokenizer.init_kwargs.pop(origin, None)
    return tokenizer


def read_model(file: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Read the weights of a GGUF file into a plain model in bf16.

    The model that Transformers 5.23 returns counts as quantised, so it is not saved itself.
    """
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    config = type(read.config).from_dict(_without_origin(read.config.to_dict()))
    with torch.device("meta"):  # the weights replace what would be drawn at random
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()}
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return plain


def _without_origin(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the file that it was read from."""
    origin = ("quantization_config", "gguf_file", "_name_or_path", "_model_name_or_path")
    return {key: value for key, value in config.items() if key not in origin}


def require_same(folder: Path, expected: PreTrainedModel) -> None:
    """Raise VerificationFailed if a written folder does not hold this model, whole and usable."""
    read = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=True, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tied = read.get_output_embeddings().weight is read.get_input_embeddings().weight
    stored, end = read.state_dict(), expected.generation_config.eos_token_id
    wrong = [
        name
        for name, tensor in expected.state_dict().items()
        if name not in stored
        or not torch.equal(stored[name], tensor)
        or not bool(tensor.isfinite().all())
    ]
    checks = {
        f"the weight {next(iter(wrong), '')} differs": bool(wrong),
        "the embeddings are not tied": tied != bool(expected.config.tie_word_embeddings),
        "the chat template is missing": not tokenizer.chat_template,
        "the end of an answer is unknown": end is None
        or not tokenizer.eos_token_id == read.generation_config.eos_token_id == end,
        "it still counts as quantised": hasattr(read.config, "quantization_config"),
    }
    if problem := next((what for what, there in checks.items() if there), ""):
        raise VerificationFailed(f"The converted model was read back, but {problem}.")


def card(model: PackagedModel) -> str:
    """Return the README of the folder: the origin of the weights and their licence."""
    return f"""---
license: {model.licence}
base_model: {model.hub_id}
library_name: transformers
pipeline_tag: text-generation
---
# {model.title}

{model.hub_id}, converted by Adapter Workbench from
{model.file} of the Python package {model.package.replace("_", "-")}.
Licence: {model.licence}, https://www.apache.org/licenses/LICENSE-2.0

That file holds quantised weights. The weights here are those, unpacked and stored in bf16, so they
differ slightly from the original model's. Tokenizer and chat template are the model's own.
"""
