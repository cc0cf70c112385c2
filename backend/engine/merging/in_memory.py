"""Merging in memory: PEFT merges into the loaded model, and what it changed is put into the files.

Slower than streaming and needs memory for the whole model, but works for every kind of layer and
every checkpoint that Transformers can write back. Tensors that no adapter changes, also those that
the model has no place for, are copied from the base's files. Knows nothing of adapters.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from transformers import GenerationConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import PreTrainedModel

from backend.engine.core.job_control import Control
from backend.engine.merging import merge_checks, streaming
from backend.engine.merging.safetensors_io import NAMES, FileWriter, Planned, read
from backend.engine.merging.stored_weights import StoredWeights
from backend.engine.models import text_part
from backend.engine.models.checkpoint_names import Conversion
from backend.errors import Unsupported, VerificationFailed
from backend.files.safetensors_header import FLOATS

Tensors = dict[str, torch.Tensor]


def write(
    merged: PreTrainedModel,
    base: Path,
    folder: Path,
    *,
    dtype: torch.dtype,
    shard_bytes: int,
    control: Control,
) -> str:
    """Write a merged model into a folder under the names of its base's files, and read it back.

    Returns how it was verified. Raises Unsupported where Transformers cannot write a changed weight
    in the form of the files, VerificationFailed where it comes out differently. `merged` was loaded
    from `base` in the dtype to compute in; floats are written as `dtype`.
    """
    weights = StoredWeights(base)
    if not weights.are_plain():
        return _write_whole(merged, weights, folder, dtype=dtype, shard_bytes=shard_bytes)
    changed, replaced = _changed(merged, weights)
    copied = [t for key, t in weights.stored.items() if key not in replaced | changed.keys()]
    new = [Planned(key, NAMES[dtype], tuple(part.shape)) for key, part in changed.items()]
    shards = streaming.plan(chain(streaming.planned(copied, dtype), new), shard_bytes)
    for number, shard in enumerate(shards, 1):
        control.check_stop()
        control.progress(f"Writing file {number} of {len(shards)}", None)
        with FileWriter(folder / shard.name, shard.tensors) as file:
            for each in shard.tensors:
                file.write(_to_write(each, changed, weights, dtype))
    if len(shards) > 1:
        streaming.write_index(folder, shards)
    rows = {key: (len(part) // 2, part[len(part) // 2].to(dtype)) for key, part in changed.items()}
    merge_checks.read_back(folder, shards, rows)
    return (
        f"{len(changed)} tensors were changed by PEFT itself, all others are the base's, and all "
        "files were read back"
    )


def _write_whole(
    merged: PreTrainedModel,
    weights: StoredWeights,
    folder: Path,
    *,
    dtype: torch.dtype,
    shard_bytes: int,
) -> str:
    """Let Transformers save a model whose files hold its weights packed, so that none is copied.

    Raises Unsupported where the files also hold parts that the model has no place for.
    """
    lost = next(filter(None, map(text_part.part_named_in, weights.names.unused)), "")
    if lost:
        raise Unsupported(
            f"The base's files contain {lost} and are packed, and the merged model would lack it.",
            cure="Merge into the full-precision files of this base.",
        )
    merged.to(dtype)
    # Transformers refuses to save settings that contradict each other; the base's file is copied.
    merged.generation_config = GenerationConfig()
    merged.save_pretrained(str(folder), max_shard_size=shard_bytes)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return "merged by PEFT itself"


def _to_write(
    each: Planned, changed: Tensors, weights: StoredWeights, dtype: torch.dtype
) -> torch.Tensor:
    if each.key in changed:
        return merge_checks.finite(changed[each.key].to(dtype), each)
    stored = weights.stored[each.key]
    tensor = read(stored)
    wanted = tensor.to(dtype) if stored.dtype in FLOATS else tensor
    return merge_checks.finite(wanted, each, was=tensor)


def _changed(merged: PreTrainedModel, weights: StoredWeights) -> tuple[Tensors, set[str]]:
    """Return the tensors to write anew by key, and the keys of the files that they replace."""
    found = merged.state_dict()
    changed: Tensors = {}
    replaced: set[str] = set()
    for name, _ in merged.named_parameters():
        key = weights.key_of(name)
        if key is not None and not _same(read(weights.stored[key]), found[name]):
            changed[key] = found[name]
            replaced.add(key)
    for conversion in weights.names.conversions:
        made = weights.build(conversion)
        if any(not _same(part, found[name]) for name, part in made.items()):
            changed |= _as_stored(merged, conversion, {name: found[name] for name in made}, weights)
            replaced |= {key for key, _ in conversion.keys}
    return changed, replaced


def _same(stored: torch.Tensor, loaded: torch.Tensor) -> bool:
    return stored.shape == loaded.shape and torch.equal(stored.to(loaded.dtype), loaded)


def _as_stored(
    merged: PreTrainedModel, conversion: Conversion, made: Tensors, weights: StoredWeights
) -> Tensors:
    """Return parameters in the form and under the names in which Transformers saves them.

    The same conversion as in loading has to give the parameters back, bit for bit.
    """
    keys = {key for key, _ in conversion.keys}
    try:
        stored = revert_weight_conversion(merged, made)
    except Exception as error:
        raise Unsupported(
            f"Transformers cannot write {conversion.first} back in the form of the base's files.",
            cure="Leave out the adapter that changes it.",
            details=str(error),
        ) from error
    stored = {key: part.contiguous() for key, part in _named_as_before(stored, keys)}
    if stored.keys() != keys:
        raise Unsupported(
            f"The base's files contain {conversion.first} under names that Transformers does not "
            "write.",
            cure="Load the base in Transformers, save it, and load that folder here.",
        )
    again = weights.build(conversion, stored)
    if any(not torch.equal(again[name], part) for name, part in made.items()):
        raise VerificationFailed(
            f"{conversion.first} would not read back from its file as it was merged.",
            cure="Nothing was kept. Leave out the adapter that changes it.",
        )
    return stored


def _named_as_before(stored: Tensors, keys: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors under the files' own names, which may lack or have one more first part."""
    for key, part in stored.items():
        near = [each for each in keys if each == key or _ends(each, key) or _ends(key, each)]
        yield (near[0] if len(near) == 1 else key), part


def _ends(long: str, short: str) -> bool:
    return long.endswith("." + short)
