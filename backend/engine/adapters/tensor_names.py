"""Names of an adapter's tensors as other programs write them, and PEFT's own names for the same.

Training programs wrap a model, and the wrappers leave their names in the file: `module.`,
`_orig_mod.`. Some keep PEFT's name of the adapter (`lora_A.default.weight`). Knows no values.
"""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from backend.engine.core.adapter_keys import PREFIX, layer_of
from backend.engine.methods.config_validation import shown
from backend.errors import ModelError, Unsupported

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put anywhere into a module's path."""
FRONT = "module"
"""What DistributedDataParallel and DeepSpeed put in front of it."""
LONGEST = 1_000
PARENTS = (
    "", "model.", "language_model.", "model.language_model.", "language_model.model.",
    "transformer.",
)  # fmt: skip
"""Where models of one architecture keep their layers: with or without a head, or beside a picture
tower."""
_PART = re.compile(
    r"(?P<module>[A-Za-z0-9_.-]+)\.lora_(?P<part>A|B|magnitude_vector)"
    r"(?:\.(?P<adapter>(?!weight$)[A-Za-z0-9_-]+))?(?P<weight>\.weight)?"
)


class Renamed(NamedTuple):
    """New names by old ones, and a sentence for each kind of change."""

    names: dict[str, str]
    notes: tuple[str, ...]


class _Key(NamedTuple):
    module: str
    ending: str
    adapter: str
    wrappers: frozenset[str]
    prefixes: int


def renamed(keys: Iterable[str], layers: Collection[str] | None, name: str) -> Renamed:
    """Return PEFT's names for the tensors of a file; names that are not LoRA's stay.

    `layers` are those of the base; a layer that exists under its name keeps it. Raises Unsupported
    where a file holds several adapters, ModelError where two tensors would get one name.
    """
    known = set(layers or ())
    read = {key: found for key in keys if (found := _read(key, known)) is not None}
    _require_one_adapter({each.adapter for each in read.values()}, name)
    old_parent, new_parent = _parents({each.module for each in read.values()}, known)
    names: dict[str, str] = {}
    for key, found in read.items():
        module = new_parent + found.module.removeprefix(old_parent)
        names[key] = f"{PREFIX}{module}.{found.ending}"
    if len(set(names.values())) < len(names):
        raise ModelError(
            f"{name} holds two tensors for one part of a layer.", cure="Save it again."
        )
    wrappers = sorted({each for found in read.values() for each in found.wrappers})
    moved = (old_parent, new_parent) if old_parent != new_parent else None
    return Renamed(names, tuple(_notes(read.values(), wrappers, moved)))


def unwrapped(module: str) -> tuple[str, frozenset[str], int]:
    """Return a module's path without wrappers, the wrappers, and how often PEFT's prefix was there.

    `base_model.model.module.model.layers.0` is `model.layers.0`.
    """
    parts = [part for part in module.split(".") if part not in WRAPPERS]
    wrappers = set(module.split(".")) & set(WRAPPERS)
    prefixes, start = 0, 0
    while True:
        if parts[start : start + 2] == ["base_model", "model"]:
            prefixes, start = prefixes + 1, start + 2
        elif parts[start : start + 1] == [FRONT]:
            wrappers.add(FRONT)
            start += 1
        else:
            return ".".join(parts[start:]), frozenset(wrappers), prefixes


def _read(key: str, known: set[str]) -> _Key | None:
    """Take a tensor's name apart; None where it is not a part of LoRA."""
    found = _PART.fullmatch(key) if len(key) <= LONGEST else None
    if found is None or (found["part"] in "AB" and not found["weight"]):
        return None
    ending = f"lora_{found['part']}{found['weight'] or ''}"
    if key.startswith(PREFIX) and layer_of(key) in known:
        return _Key(layer_of(key), ending, found["adapter"] or "", frozenset(), 1)
    module, wrappers, prefixes = unwrapped(found["module"])
    return _Key(module, ending, found["adapter"] or "", wrappers, prefixes) if module else None


def _require_one_adapter(adapters: set[str], name: str) -> None:
    if len(adapters) > 1:
        names = ", ".join(
            repr(shown(each)) if each else "one without a name" for each in sorted(adapters)
        )
        raise Unsupported(
            f"{name} holds {len(adapters)} adapters in one file: {names}.",
            cure="Save each of them in a folder of its own.",
        )


def _parents(modules: set[str], known: set[str]) -> tuple[str, str]:
    """Return which parent of all layers is called otherwise in the base, and how; else equal ones.

    Nothing is guessed: every layer must exist under its new name, in one way only.
    """
    if not known or not modules or modules & known:
        return "", ""
    fitting = {
        (old, new)
        for old in PARENTS
        if all(module.startswith(old) for module in modules)
        for new in PARENTS
        if all(new + module.removeprefix(old) in known for module in modules)
    }
    targets = {frozenset(new + m.removeprefix(old) for m in modules) for old, new in fitting}
    return min(fitting, key=lambda pair: len(pair[0] + pair[1])) if len(targets) == 1 else ("", "")


def _notes(
    read: Iterable[_Key], wrappers: list[str], moved: tuple[str, str] | None
) -> Iterable[str]:
    found = list(read)
    if wrappers:
        listed = ", ".join(repr(f"{each}.") for each in wrappers)
        yield f"The names of its layers had wrappers, which were left out: {listed}."
    counts = {each.prefixes for each in found}
    if 0 in counts:
        yield f"PEFT's prefix {PREFIX!r} was missing in the names of its tensors, and was added."
    if any(count > 1 for count in counts):
        yield f"PEFT's prefix {PREFIX!r} was there more than once; one was kept."
    if adapter := next((each.adapter for each in found if each.adapter), ""):
        yield f"The adapter's name {shown(adapter)!r} in the names of its tensors was left out."
    if moved:
        old, new = (each or "no prefix" for each in moved)
        yield f"The layers are under {old!r} in its file, and under {new!r} in this base."
