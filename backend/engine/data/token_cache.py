"""Tokenised tables on disk, named by content and settings, so that each is tokenised only once.

An entry is written completely or not at all, and mapped into memory when it is used. The entries
unused for longest are deleted when the store grows beyond its limit. If the store cannot be read or
written, tables are tokenised again; nothing else is lost.
"""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import tokenizers
import transformers

from backend.engine.data.dataset import Learning, Noticed, Part, Problems
from backend.engine.data.token_arrays import ARRAYS, PER_ROW, Encoded
from backend.engine.models import tokenizer_traits
from backend.engine.templates.rendering import ChatTemplate
from backend.errors import WorkbenchError
from backend.files.atomic_files import new_folder
from backend.results import RowProblem

log = logging.getLogger(__name__)
FORMAT = 6
"""Raised when the rule changes by which a text is rendered or has a loss, so that nothing of before
is used again."""
LIMIT_BYTES = 2 * 1024**3
WORTH_BYTES = 256 * 1024
"""Smaller tables are tokenised as fast as they are found again."""
MAPPED = ("ids", "learned")
FACTS = "facts.json"
_MARKS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class TokenStore:
    """A folder of tokenised tables."""

    def __init__(
        self, folder: Path, *, limit_bytes: int = LIMIT_BYTES, worth_bytes: int = WORTH_BYTES
    ) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._worth = worth_bytes

    def get_or_make(self, part: Part, tokenizer: Any, make: Callable[[], Encoded]) -> Encoded:
        """Return a table's tokens from disk, or make and keep them."""
        if part.table.bytes < self._worth:
            return make()
        folder = self._folder / self._key(part, tokenizer)
        encoded = _read(folder, part.table.file)
        if encoded is not None:
            return encoded
        made = make()
        self._keep(folder, made)
        return made

    def knows(self, part: Part, tokenizer: Any) -> bool:
        """Tell whether a table's tokens are on disk, or can be made as quickly."""
        if part.table.bytes < self._worth:
            return True
        return (self._folder / self._key(part, tokenizer) / FACTS).is_file()

    def _key(self, part: Part, tokenizer: Any) -> str:
        """Name a table by everything that its tokens depend on."""
        parts = [
            FORMAT,
            part.table.digest(),
            part.shape.spec,
            _mark(tokenizer),
            tokenizer.chat_template,
            [tokenizer.bos_token, tokenizer.eos_token],
            _what_is_learned(part.learning, tokenizer),
            [tokenizers.__version__, transformers.__version__],  # both have changed their output
            *_unusual(tokenizer),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def _keep(self, folder: Path, encoded: Encoded) -> None:
        try:
            with new_folder(folder, replace=True) as partial:
                _write(partial, encoded)
            self._make_room(folder)
        except (OSError, WorkbenchError) as error:
            log.warning("The tokens of a table could not be kept: %s", error)

    def _make_room(self, newest: Path) -> None:
        entries = [each for each in self._folder.iterdir() if (each / FACTS).is_file()]
        entries.sort(key=lambda each: (each / FACTS).stat().st_mtime, reverse=True)
        used = _size(newest)
        for entry in entries:
            if entry == newest:
                continue
            used += _size(entry)
            if used > self._limit:
                shutil.rmtree(entry, ignore_errors=True)  # existing memory maps stay valid


def _unusual(tokenizer: Any) -> list[Any]:
    """Name the traits of a tokenizer that drop tokens or rows; empty for most."""
    found = [tokenizer_traits.embedded(tokenizer), tokenizer_traits.appended(tokenizer)]
    return found if any(found) else []


def _what_is_learned(learning: Learning, tokenizer: Any) -> list[Any]:
    """Name what the tokens depend on besides text and template: the date only where it is shown."""
    dated = tokenizer.chat_template and ChatTemplate(tokenizer).shows_date
    today = learning.date or date.today().isoformat()
    shown = today if dated else ""
    return [learning.last_only, learning.thoughts, shown, learning.placeholders]


def _mark(tokenizer: Any) -> str:
    """Name a tokenizer by a hash of its rules; this takes a while, so it is done once."""
    known = _MARKS.get(tokenizer)
    if known is None:
        rules = tokenizer.backend_tokenizer.to_str().encode()
        known = _MARKS[tokenizer] = hashlib.sha256(rules).hexdigest()
    return known


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.iterdir())


def _write(folder: Path, encoded: Encoded) -> None:
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(encoded, name), allow_pickle=False)
    facts = {
        "tokens": len(encoded.ids),
        "rows": len(encoded),
        "bad": encoded.problems.count,
        "problems": [problem.model_dump() for problem in encoded.problems.first],
        "refusal": encoded.refusal,
        "columns": encoded.noticed.columns,
        "placeholders": encoded.noticed.placeholders,
    }
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _read(folder: Path, file: str) -> Encoded | None:
    """Map an entry; None where there is none or it is incomplete."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        arrays = {name: _load(folder / f"{name}.npy", mapped=name in MAPPED) for name in ARRAYS}
        known = [RowProblem(**{**each, "file": file}) for each in facts["problems"]]
        encoded = Encoded(
            **arrays,
            files=[(0, file)],
            problems=Problems(facts["bad"], known),
            noticed=Noticed(Counter(facts["columns"]), Counter(facts["placeholders"])),
            refusal=tuple(facts["refusal"]) if facts["refusal"] else None,
        )
        if not _is_whole(encoded, facts):
            raise ValueError("its parts do not fit together")
        (folder / FACTS).touch()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("Kept tokens in %s cannot be used: %s", folder, error)
        return None
    return encoded


def _load(path: Path, *, mapped: bool) -> Any:
    # Not np.memmap itself: slicing it takes ten times as long.
    return np.asarray(np.load(path, mmap_mode="r" if mapped else None))


def _is_whole(encoded: Encoded, facts: dict[str, Any]) -> bool:
    rows, tokens = facts["rows"], facts["tokens"]
    return (
        len(encoded.ids) == len(encoded.learned) == tokens
        and len(encoded.offsets) == rows + 1
        and int(encoded.offsets[-1]) == tokens
        and all(len(getattr(encoded, name)) == rows for name in PER_ROW)
    )
