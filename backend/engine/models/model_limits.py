"""Limits for the files and numbers of a base, checked before Transformers opens or builds anything.

Transformers 5.23 builds what config.json says: ten million layers take hours, and a tokenizer file
that is a FIFO blocks forever. The size of a base is limited by what its weight files hold.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from backend.errors import ModelError
from backend.files import read_limits, safetensors_header
from backend.files.foreign_files import require_regular, require_size

CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
TEMPLATES = "additional_chat_templates"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "vocab.bpe", "merges.txt", "chat_template.json",
)  # fmt: skip
TOKENIZER_SUFFIXES = (".model", ".tiktoken", ".spm", ".bpe")
OPENED = (".json", ".safetensors", ".jinja", *TOKENIZER_SUFFIXES)
"""Extensions of files that Transformers opens; a folder with such a name is an error, too."""
LAYERS = re.compile(r"(num|n)_(\w+_)?layers?|(encoder|decoder)_layers")
EXPERTS = re.compile(r"\w*num_(\w+_)?experts|n_(\w+_)?experts")
SIZES = re.compile(
    r"\w+_(size|dim|heads|positions|embeddings|length)|n_(embd|inner|positions|ctx|head)|d_\w+"
)
MUST_BE = ("num_hidden_layers", "hidden_size", "vocab_size")
DAMAGED = "Its config.json is damaged, or of another model: download it again."
BITS = 8
"""The most numbers that a byte can store: at least one bit each."""


def require_bounded_files(folder: Path, name: str) -> None:
    """Raise ModelError where a file of a model folder is not a regular file, or is too large."""
    for count, entry in enumerate(_entries(folder), 1):
        if count > read_limits.FOLDER_ENTRIES:
            raise ModelError(
                f"{name} holds more than {read_limits.FOLDER_ENTRIES:,} files.",
                cure="Choose the folder that holds the model alone.",
            )
        path = Path(entry.path)
        if not path.exists() or (path.is_dir() and path.suffix not in OPENED):
            continue
        most = _most_bytes(path.name)
        if most is None:
            require_regular(path, f"{name}/{path.name}")
        else:
            require_size(path, most, f"{name}/{path.name}")


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    for place in (folder, folder / TEMPLATES):
        if place.is_dir():
            with os.scandir(place) as found:
                yield from found


def _most_bytes(file: str) -> int | None:
    """Return the size limit for a file of this name; None for weights and files never opened."""
    if file in CONFIGS:
        return read_limits.CONFIG_BYTES
    if file.endswith(".index.json"):
        return read_limits.INDEX_BYTES
    if file.endswith(".jinja"):
        return read_limits.TEMPLATE_BYTES
    if file in TOKENIZER or file.endswith(TOKENIZER_SUFFIXES):
        return read_limits.TOKENIZER_BYTES
    return None


def require_plausible(config: dict[str, Any], name: str) -> None:
    """Raise ModelError where a number in config.json is larger than in any existing model."""
    largest = {LAYERS: 0.0, EXPERTS: 0.0}
    for key, value in _numbers(config):
        for pattern in largest:
            if pattern.fullmatch(key):
                largest[pattern] = max(largest[pattern], value)
        most = _most(key)
        if most is not None and not 0 <= value <= most:
            raise ModelError(
                f"{name}/config.json says {key} = {value:,}, and from 0 to {most:,} are possible.",
                cure=DAMAGED,
            )
    experts = int(largest[LAYERS] * largest[EXPERTS])
    if experts > read_limits.EXPERTS_IN_ALL:
        raise ModelError(
            f"{name}/config.json says {experts:,} experts in all layers, and at most "
            f"{read_limits.EXPERTS_IN_ALL:,} are possible.",
            cure=DAMAGED,
        )


def require_sizes(known: Any, name: str) -> None:
    """Raise ModelError where a configuration lacks a size that every model has."""
    text = known.get_text_config(decoder=True)
    for field in MUST_BE:
        value = getattr(text, field, None)
        if value is not None and (isinstance(value, bool) or not _is_count(value)):
            raise ModelError(
                f"{name}/config.json says {field} = {str(value)[:40]!r}, which is not a number of "
                "at least 1.",
                cure=DAMAGED,
            )


def require_held(known: Any, files: list[Path], name: str) -> None:
    """Raise ModelError where the weight files are too small for what config.json says."""
    tensors, most = _stored(files)
    text = known.get_text_config(decoder=True)
    layers = getattr(text, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > tensors:
        raise ModelError(
            f"{name}/config.json says num_hidden_layers = {layers:,}, but its weight files hold "
            f"{tensors:,} tensors, too few for so many layers.",
            cure=DAMAGED,
        )
    width, words = getattr(text, "hidden_size", None), getattr(text, "vocab_size", None)
    if isinstance(width, int) and isinstance(words, int) and width * words > most:
        raise ModelError(
            f"{name}/config.json says {words:,} tokens of {width:,} numbers each, but its weight "
            f"files hold at most {most:,} numbers.",
            cure=DAMAGED,
        )


def require_fits(model: torch.nn.Module, files: list[Path], name: str) -> None:
    """Raise ModelError where a skeleton has more parameters than its weight files can hold.

    Transformers would create the missing ones in memory.
    """
    parameters = sum(each.numel() for each in model.parameters())
    _, most = _stored(files)
    if parameters > most:
        raise ModelError(
            f"{name}/config.json describes {parameters:,} parameters, but its weight files hold at "
            f"most {most:,} numbers.",
            cure=DAMAGED,
        )
    made = sum(each.numel() * each.element_size() for each in model.buffers())
    if made > max(read_limits.BUFFER_BYTES, most):
        raise ModelError(
            f"{name}/config.json needs tables of {made:,} bytes in addition to its weights.",
            cure=DAMAGED,
        )


def _stored(files: list[Path]) -> tuple[int, int]:
    """Return how many tensors weight files hold, and how many numbers at most."""
    held = [tensor for file in files for tensor in safetensors_header.read_header(file)]
    return len(held), BITS * sum(tensor.bytes for tensor in held)


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of a configuration with its name, including nested ones."""
    left = [(key, value)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left.extend(value.items())
        elif isinstance(value, list):
            left.extend((key, each) for each in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _most(key: str) -> int | None:
    if LAYERS.fullmatch(key):
        return read_limits.LAYERS
    if EXPERTS.fullmatch(key):
        return read_limits.EXPERTS
    return read_limits.SIZE if SIZES.fullmatch(key) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1
