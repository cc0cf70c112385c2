"""A GGUF file becomes a plain folder: read by Transformers, written, read back and compared.

Runs in a process of its own, which `process` limits and ends.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from backend.catalogue import gguf_families as known
from backend.engine.core import memory
from backend.engine.core.dtypes import DTYPES
from backend.engine.core.error_translation import translate
from backend.engine.core.library_logging import quiet_libraries
from backend.engine.models.gguf import checks, parts, settings, tokenizer
from backend.errors import ModelError, Unsupported, VerificationFailed
from backend.files import gguf_header
from backend.files.gguf_header import Header

SHORT = 12
"""The tokens of the text that both models are compared on."""
RESERVE_BYTES = 512 * 1024**2
"""What a conversion leaves to other programs."""
Tell = Callable[[str, float], None]


def run(task: dict[str, Any], tell: Tell) -> None:
    """Do a conversion in its own process; see `convert` for what it raises."""
    quiet_libraries()
    _limit = memory.DataLimit(reserve=RESERVE_BYTES, limit=None)
    try:
        convert([Path(file) for file in task["files"]], Path(task["folder"]), task["card"], tell)
    except Exception as error:
        raise translate(error) from error


def convert(files: Sequence[Path], folder: Path, card: str, tell: Tell) -> None:
    """Fill an empty folder with the model of a file or its parts, and compare it with both.

    Raises ModelError, Unsupported or VerificationFailed.
    """
    with whole(files, folder) as file:
        _convert(file, folder, card, tell)


@contextmanager
def whole(files: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Yield the one file of a model; parts are joined beside the folder for a while."""
    if len(files) == 1:
        yield files[0]
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".parts-") as there:
        file = Path(there) / files[0].name
        parts.join(files, file)
        yield file


def _convert(file: Path, folder: Path, card: str, tell: Tell) -> None:
    header = gguf_header.read(file)
    about = checks.about(header)
    with alone(file) as there:
        tell("Reading the tokenizer", 0.1)
        words = tokenizer.read(header, there)
        config = settings.configuration(header)
        _require_size(header, config)
        tell("Unpacking the weights", 0.2)
        model = read_model(header, there, config, DTYPES[about.dtype])
    model.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    words.model_max_length = getattr(config, "max_position_embeddings", words.model_max_length)
    tell("Writing the folder", 0.7)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    tell("Reading the folder back", 0.8)
    require_same(folder, model, words)


@contextmanager
def alone(file: Path) -> Iterator[Path]:
    """Yield a file under the same name in a folder of its own.

    Transformers reads templates and configurations that lie beside a file, and looks for a name in
    the working folder first.
    """
    with tempfile.TemporaryDirectory(prefix="gguf-") as folder:
        there = Path(folder) / file.name
        try:
            there.symlink_to(file.absolute())
        except OSError:  # Windows, without the right to make links
            try:
                os.link(file, there)
            except OSError:
                shutil.copyfile(file, there)
        yield there


def read_model(
    header: Header, file: Path, config: PretrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Read the weights into a plain model of a type; raises VerificationFailed if any is missing.

    Raises ModelError where a number is not finite.
    The model that Transformers 5.23 returns counts as quantised, so it is not saved itself.
    """
    # The newer reader of Transformers 5.23 computes in the type that is asked for.
    exact = torch.float32 if header.architecture in known.BY_BLOCKS else dtype
    read, report = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=str(file),
        config=config,
        dtype=exact,
        local_files_only=True,
        output_loading_info=True,
    )
    if problem := next((kind for kind, names in report.items() if names), ""):
        raise VerificationFailed(
            f"{header.file.name} was not read whole: {problem.replace('_', ' ')}.",
            cure=checks.CHOOSE,
            details=str(report),
        )
    plain = _empty(type(read.config).from_dict(without_origin(read.config.to_dict())), dtype)
    weights = {name: tensor.to(dtype) for name, tensor in read.state_dict().items()}
    if odd := next((name for name, each in weights.items() if not each.isfinite().all()), ""):
        raise ModelError(
            f"{header.file.name} holds numbers that are not finite, in {odd}.",
            cure=gguf_header.DAMAGED,
        )
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    for name, table in read.named_buffers():  # what no state dict has: the frequencies of positions
        owner, _, own = name.rpartition(".")
        setattr(plain.get_submodule(owner), own, table)
    return plain.eval()


def _empty(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build a model without weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def _require_size(header: Header, config: PretrainedConfig) -> None:
    """Raise ModelError or Unsupported where the model has not exactly the numbers of the file.

    Transformers 5.23 leaves out tensors that it has no name for, without a word.
    """
    model = _empty(config, torch.float32)
    wanted = sum(each.numel() for each in model.parameters())
    layers = header.own()["block_count"]
    aside = tuple(f"blk.{layers - 1 - n}." for n in range(settings.layers_ahead(header)))
    held = sum(
        each.numel
        for each in header.tensors
        if each.name != checks.ROPE_TABLE and not each.name.startswith(aside)
    )
    if held < wanted:
        raise ModelError(
            f"{header.file.name} lacks a part of its model: it holds {held:,} numbers, and the "
            f"model takes {wanted:,}.",
            cure=f"Download it again. {checks.CHOOSE}",
        )
    if held > wanted:
        raise Unsupported(
            f"{header.file.name} holds {held:,} numbers, but its model as Transformers has it "
            f"takes {wanted:,}, so a part would be lost.",
            cure=checks.CHOOSE,
        )


def without_origin(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the file that it was read from."""
    origin = ("quantization_config", "gguf_file", "_name_or_path", "_model_name_or_path")
    return {key: value for key, value in config.items() if key not in origin}


@torch.no_grad()
def scores(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of a short text, (tokens, vocabulary) in fp32."""
    ids = torch.arange(SHORT)[None] * 7 % model.config.vocab_size
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


def require_same(folder: Path, expected: PreTrainedModel, words: PreTrainedTokenizerBase) -> None:
    """Raise VerificationFailed if a written folder does not hold this model, whole and usable."""
    read = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=True, local_files_only=True
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tied = read.get_output_embeddings().weight is read.get_input_embeddings().weight
    stored = read.state_dict()
    wrong = [
        name
        for name, tensor in expected.state_dict().items()
        if name not in stored or not torch.equal(stored[name], tensor)
    ]
    findings = {
        f"the weight {next(iter(wrong), '')} differs": bool(wrong),
        "the embeddings are not tied as before": tied != bool(expected.config.tie_word_embeddings),
        "the chat template differs": tokenizer.chat_template != words.chat_template,
        "the tokenizer differs": tokenizer.get_vocab() != words.get_vocab(),
        "the end of an answer differs": not (
            tokenizer.eos_token_id == words.eos_token_id == read.generation_config.eos_token_id
        ),
        "it still counts as quantised": hasattr(read.config, "quantization_config"),
        "its answers differ": not wrong and not torch.equal(scores(read), scores(expected)),
    }
    if problem := next((what for what, there in findings.items() if there), ""):
        raise VerificationFailed(
            f"The converted model was read back, but {problem}.", cure=checks.CHOOSE
        )
