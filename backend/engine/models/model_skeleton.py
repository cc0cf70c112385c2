"""The session's base without weights, for a process that has not loaded it.

The last base is cached, because a skeleton and a tokenizer take up to a second to build.
"""

from functools import lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from backend.engine.models import model_folder
from backend.results import ModelFacts

SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "additional_chat_templates/*")


def skeleton(facts: ModelFacts) -> torch.nn.Module:
    """Return the base's modules on the meta device; raises ModelError. Do not change them."""
    return _skeleton(facts.path, facts.fingerprint)


def tokenizer(facts: ModelFacts) -> PreTrainedTokenizerBase:
    """Return the base's tokenizer with the chat template it was loaded with; raises ModelError."""
    return _tokenizer(facts.path, _files_of_tokenizer(facts.path), facts.given_template)


@lru_cache(1)
def _skeleton(path: str, fingerprint: str) -> torch.nn.Module:
    return model_folder.skeleton(Path(path))


@lru_cache(1)
def _tokenizer(
    path: str, files: tuple[tuple[str, int, int], ...], template: str
) -> PreTrainedTokenizerBase:
    return model_folder.read_tokenizer(Path(path), template)


def _files_of_tokenizer(path: str) -> tuple[tuple[str, int, int], ...]:
    """Return names, sizes and times of a base's small files: a template may be edited in place."""
    found = (file for pattern in SMALL for file in Path(path).glob(pattern) if file.is_file())
    stats = [(file.name, file.stat()) for file in sorted(found)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
