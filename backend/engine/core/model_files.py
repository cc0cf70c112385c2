"""Which files of a model's repository are used, so that only these are downloaded.

Repositories often hold the same weights several times: pickled, for other programs, in halves of
the precision, or as their authors first wrote them.
"""

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from backend.errors import ModelError
from backend.files import read_limits
from backend.files.foreign_files import require_size
from backend.files.safetensors_header import INDEX, WHOLE

CARD = "README.md"
"""Names the full-precision model where the weights are a quantised copy."""
# Safetensors only: pickled weights can run code when they are loaded.
TEXTS = ("*.json", "*.model", "*.txt", "*.jinja", CARD)
TEMPLATES = "additional_chat_templates/*.jinja"
"""Named chat templates, the only files in a folder that Transformers 5.23 reads."""
OTHER_INDEXES = "*.index.json"


def texts_of(names: Iterable[str]) -> list[str]:
    """Return the files of a model that are not weights: texts of all kinds."""
    return sorted(
        name
        for name in names
        if fnmatchcase(name, TEMPLATES)
        or (
            ("/" not in name and any(fnmatchcase(name, each) for each in TEXTS))
            and (name == INDEX or not fnmatchcase(name, OTHER_INDEXES))
        )
    )


def weights_of(names: Iterable[str], index: Path | None) -> list[str]:
    """Return the weight files that Transformers reads, in its order of preference.

    `index` is the downloaded list of weight files, where there is one. Raises ModelError where it
    cannot be read; a file that it names and the repository lacks is reported when loading.
    """
    there = set(names)
    if WHOLE in there:
        return [WHOLE]
    if index is None:
        return []
    require_size(index, read_limits.INDEX_BYTES, INDEX)
    try:
        named = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(
            f"{INDEX} of this model is not a list of weight files.",
            cure="Choose another base.",
        ) from None
    inside = {name for name in named if isinstance(name, str) and PurePosixPath(name).name == name}
    return sorted(inside & there)
