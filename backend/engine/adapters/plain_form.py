"""An adapter as it came, in the form that PEFT writes: what changes nothing is left out, and said.

Writes a new folder only where something differs, and never into the source. What it returns is
scanned as strictly as any other folder; what it does not understand stays as it is, for the scan to
refuse.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file

from backend.engine.adapters import (
    base_copies,
    mlx_adapters,
    split_experts,
    tensor_names,
    untrained_parts,
)
from backend.engine.adapters.import_sources import Incoming
from backend.engine.core.adapter_keys import layer_of
from backend.engine.methods import config_validation, file_validation, scaling
from backend.engine.methods.config_validation import CONFIG, read_raw_config, shown
from backend.engine.methods.file_validation import is_adapter_weight
from backend.engine.methods.peft_io import WEIGHTS
from backend.engine.models import model_skeleton
from backend.engine.models.linear_layers import Target
from backend.errors import ModelError, Unsupported
from backend.files import read_limits
from backend.files.foreign_files import read_bytes, require_size
from backend.files.safetensors_header import StoredTensor, copy_tensors, read_header
from backend.library import SIDECAR
from backend.results import ModelFacts

SHOWN_FIELDS = 12
MOST_COPIES = 1_000
"""Tensors that are compared with the base's: embeddings, a head, and the norms of all layers."""
_NOT_YET = (
    "It also stores {names}. Whether they equal the base's own, and can be left out, is known only "
    "when the base is loaded."
)
_LEFT_OUT = (
    "It also stores copies of the base's weights ({names}), equal {equal}: they were left out."
)
_EQUAL = {"equal": "bit for bit", "rounded": "in the lower of the two precisions"}


class _Plain(NamedTuple):
    """The changed parts of a folder; None stays as it is. `tensors` are from old to new names."""

    config: dict[str, Any] | None
    tensors: dict[str, StoredTensor] | None
    notes: tuple[str, ...]


@contextmanager
def plain_form(
    found: Incoming, facts: ModelFacts | None, layers: list[Target] | None
) -> Iterator[Incoming]:
    """Yield the adapter in PEFT's form, with notes; a new folder is removed afterwards.

    Raises Unsupported or ModelError where a part of it has no such form.
    """
    raw = read_raw_config(found.folder, found.name)
    if mlx_adapters.is_mlx(raw, found.folder):
        with tempfile.TemporaryDirectory(prefix="adapter-") as written:
            yield _from_mlx(raw, found, Path(written), layers)
        return
    plain = _plain(raw, found, facts, layers)
    with ExitStack() as stack:
        if plain.notes:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adapter-")))
            _write(plain, raw, found.folder, place)
            found = found._replace(folder=place, notes=(*found.notes, *plain.notes))
        if facts and layers and split_experts.is_split(list(_stored(found.folder)), layers):
            file_validation.scan(found.folder, None, name=found.name)
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adapter-")))
            base = model_skeleton.skeleton(facts)
            split_experts.put_together(found.folder, place, base, layers, found.name)
            found = found._replace(folder=place, notes=(*found.notes, split_experts.NOTE))
        yield found


def _from_mlx(
    raw: dict[str, Any], found: Incoming, place: Path, layers: list[Target] | None
) -> Incoming:
    config, tensors, note = mlx_adapters.convert(raw, found.folder, found.name)
    names = tensor_names.renamed(tensors, _names(layers), found.name)
    moved = {names.names.get(key, key): tensor for key, tensor in tensors.items()}
    save_file(moved, place / WEIGHTS, metadata={"format": "pt"})
    config["target_modules"] = sorted({layer_of(key) for key in moved})
    (place / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return found._replace(folder=place, notes=(*found.notes, note, *names.notes))


def _plain(
    raw: dict[str, Any], found: Incoming, facts: ModelFacts | None, layers: list[Target] | None
) -> _Plain:
    config, notes = dict(raw), list[str]()
    if config_validation.starts_with_a_mark(found.folder, found.name):
        notes.append(f"Its {CONFIG} starts with a byte-order mark, which was left out.")
    if raw.get("peft_type") != "LORA":
        return _Plain(None, None, ())
    config_validation.require_plain_lora(raw, found.name)
    if unknown := config_validation.unknown_fields(raw):
        config = {key: value for key, value in raw.items() if key not in unknown}
        notes.append(f"Settings that change nothing here were left out: {_listed(unknown)}.")
    stored = _stored(found.folder)
    names = tensor_names.renamed(stored, _names(layers), found.name)
    kept, about_copies = _without_copies(stored, found.name, facts)
    tensors = {names.names.get(key, key): kept[key] for key in kept}
    tensors, about_towers = untrained_parts.without_untrained(tensors, layers)
    if names.notes:
        config |= {f: _following(config, f, names.names, found.name) for f in _PATTERNS}
    changed = [*names.notes, *about_copies, *about_towers]
    return _Plain(config, tensors if changed else None, (*notes, *changed))


def _stored(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name; none where the file is missing or damaged."""
    path = folder / WEIGHTS
    try:
        require_size(path, read_limits.ADAPTER_BYTES, WEIGHTS)
        found = read_header(path)
        size = path.stat().st_size
    except (ModelError, OSError, RecursionError):
        return {}
    if sum(each.bytes for each in found) > size:  # tensors that overlap would grow when copied
        return {}
    return {each.key: each for each in found}


def _without_copies(
    stored: dict[str, StoredTensor], name: str, facts: ModelFacts | None
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Leave out copies of the base's weights, with notes; raises Unsupported where one differs."""
    extra = {key: _module_key(key) for key in stored if not _is_lora(key)}
    kept = {key: each for key, each in stored.items() if key not in extra}
    if not extra or not kept:
        return stored, []
    if len(extra) > MOST_COPIES:
        raise _foreign(next(iter(extra)), name, f"it holds {len(extra)} such tensors")
    if facts is None:
        return kept, [_NOT_YET.format(names=_listed(extra.values()))]
    verdicts: dict[str, list[str]] = {}
    try:
        base = base_copies.base_tensors(Path(facts.path))
    except (ModelError, OSError):
        raise _foreign(next(iter(extra)), name, "the base's files cannot be read") from None
    for key, short in extra.items():
        original = base_copies.original(short, base, tied=facts.tied_embeddings)
        if original is None:
            raise _foreign(key, name, "")
        verdict = base_copies.compare(stored[key], original)
        if verdict not in _EQUAL:
            raise _foreign(key, name, _reason(verdict, stored[key], original))
        verdicts.setdefault(verdict, []).append(short)
    return kept, [
        _LEFT_OUT.format(names=_listed(names), equal=_EQUAL[verdict])
        for verdict, names in verdicts.items()
    ]


def _reason(verdict: str, stored: StoredTensor, original: StoredTensor) -> str:
    if stored.shape != original.shape:
        return f"its shape is {stored.shape}, and that of the base's own is {original.shape}"
    if verdict == "unknown":
        return f"its type {stored.dtype} cannot be compared with the base's {original.dtype}"
    return "its values are not those of the base"


def _foreign(key: str, name: str, reason: str) -> Unsupported:
    because = f" It cannot be left out: {reason}." if reason else ""
    return Unsupported(
        f"{name} contains {shown(key, 120)!r}, which is not an adapter weight.{because}",
        cure="Such a file could overwrite the base; only LoRA weights are accepted.",
    )


def _is_lora(key: str) -> bool:
    return ".lora_" in key or is_adapter_weight(key)


def _module_key(key: str) -> str:
    """Return a base tensor's own name: without wrappers and PEFT's prefix."""
    return tensor_names.unwrapped(key)[0] if len(key) <= tensor_names.LONGEST else key


_PATTERNS = ("rank_pattern", "alpha_pattern")


def _following(
    config: dict[str, Any], field: str, names: dict[str, str], name: str
) -> dict[str, Any]:
    """Return ranks or alphas by the new names of the layers, as PEFT found them by the old ones.

    A model may have been wrapped before or after PEFT saw it, so both names are tried.
    """
    entries = config_validation.pattern(config, field, name, len(names))
    values: dict[str, Any] = {}
    for old, new in names.items():
        before = layer_of(old)
        spellings = (before, tensor_names.unwrapped(before)[0], layer_of(new))
        if (key := scaling.matching_key(entries, spellings)) is not None:
            values[f"^{layer_of(new)}"] = entries[key]
    return values


def _write(plain: _Plain, raw: dict[str, Any], source: Path, place: Path) -> None:
    """Write a folder's plain form beside nothing else; unchanged weights are only linked."""
    text = json.dumps(plain.config if plain.config is not None else raw)
    (place / CONFIG).write_text(text, encoding="utf-8")
    if plain.tensors is not None:
        copy_tensors(place / WEIGHTS, plain.tensors)
    elif (source / WEIGHTS).exists():
        _link(source / WEIGHTS, place / WEIGHTS)
    elif pickled := [path for path in source.iterdir() if path.suffix in _PICKLES]:
        (place / pickled[0].name).touch()  # the scan says why these are refused
    try:
        own = read_bytes(source / SIDECAR, read_limits.ADAPTER_TEXT_BYTES, SIDECAR)
    except (OSError, ModelError):
        return
    (place / SIDECAR).write_bytes(own)


_PICKLES = (".bin", ".pt", ".pth", ".pkl")


def _link(source: Path, target: Path) -> None:
    """Let a file appear in a folder, without its bytes where the system allows it."""
    try:
        target.symlink_to(source.resolve())
    except OSError:  # Windows without the right to make links
        require_size(source, read_limits.ADAPTER_BYTES, source.name)
        shutil.copyfile(source, target)


def _names(layers: list[Target] | None) -> list[str] | None:
    return None if layers is None else [layer.name for layer in layers]


def _listed(names: Any) -> str:
    found = [repr(shown(each, 80)) for each in names]
    more = f" and {len(found) - SHOWN_FIELDS} more" if len(found) > SHOWN_FIELDS else ""
    return ", ".join(found[:SHOWN_FIELDS]) + more
