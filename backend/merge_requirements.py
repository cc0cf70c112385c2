"""What merging to disk needs, and what prevents it, as far as files alone can show.

The page shows this before a merge starts; the engine checks again just before it starts. Knows no
torch: the headers of weight files and the configurations are enough.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import psutil

from backend.catalogue import init_methods
from backend.catalogue.precisions import BYTES, STORED_NAMES
from backend.errors import DiskFull, InvalidRequest, ModelError, Unsupported
from backend.files import safetensors_header
from backend.files.destinations import BASE_FOLDER, require_outside
from backend.library import Library
from backend.requests import Merge, Variant
from backend.results import AdapterInfo, MergeNeeds, ModelFacts
from backend.sizes import size_text

MEMORY_PER_TENSOR = 6
"""Copies of a weight: as read, merged and written, and its change (for DoRA also its norm)."""
MODULES_BYTES = 16_000_000
"""Memory of a model's modules without their weights."""
HEADER_BYTES = 1_000_000


def check(request: Merge, base: ModelFacts, library: Library) -> list[AdapterInfo]:
    """Return the adapters to merge; raises if the merge is not possible or the disk too full."""
    infos = check_variant(request.variant, base, library)
    check_destination(Path(request.destination).expanduser(), Path(base.path))
    needs = measure(request, base, library)
    if needs.disk_bytes > needs.disk_free_bytes:
        raise DiskFull(
            f"Merging needs {size_text(needs.disk_bytes)} of disk space, but only "
            f"{size_text(needs.disk_free_bytes)} are free in {request.destination}.",
            cure="Free some space, choose a folder on another disk, or choose bf16.",
        )
    return infos


def check_variant(variant: Variant, base: ModelFacts, library: Library) -> list[AdapterInfo]:
    """Return the adapters of a variant; raises if one of them cannot be merged correctly."""
    if is_quantised(base) and base.stored_quantized:
        raise quantised_files(base.name, base.stored_quantized, base.original)
    infos = [library.get(name) for name, _ in variant]
    if len({info.id for info in infos}) < len(infos):
        raise InvalidRequest("An adapter is named twice.", cure="Add up its strengths instead.")
    for info, (_, strength) in zip(infos, variant, strict=True):
        if info.base_fingerprint != base.fingerprint:
            raise Unsupported(
                f"{info.name!r} was made for the base {info.base_name!r}, "
                f"but {base.name!r} is loaded.",
                cure=f"Load {info.base_name!r} to merge it.",
            )
        _check_adapter(info, strength, _config(library.folder(info.id), info.name))
    return infos


def quantised_files(name: str, title: str, original: str) -> Unsupported:
    """Return the refusal of a merge into files that hold no full-precision weights."""
    return Unsupported(
        f"The files of {name!r} are already quantised to {title}, and a merge changes "
        "full-precision weights.",
        cure=f"Load {original or 'the full-precision model'}, and merge into that.",
    )


def check_destination(destination: Path, base_folder: Path) -> None:
    """Raise InvalidRequest if a new model cannot be written into this folder."""
    stays = "Choose a new folder elsewhere: the base must not be changed."
    require_outside(destination, base_folder, BASE_FOLDER, cure=stays)
    real = destination.resolve()
    if real.exists() and (not real.is_dir() or any(real.iterdir())):
        raise InvalidRequest(
            f"{destination} exists and is not an empty folder.", cure="Choose a new folder."
        )


def measure(request: Merge, base: ModelFacts, library: Library) -> MergeNeeds:
    """Return how much disk and memory a merge takes, from file headers alone."""
    stored = safetensors_header.tensors(Path(base.path))
    if not stored:
        raise ModelError(f"{base.name!r} no longer has weight files in {base.path}.")
    precision = target_precision(request, base, stored)
    item, wide = BYTES[precision], max(BYTES[precision], BYTES[merge_precision(request, base)])
    sizes = [t.numel * item if t.dtype in safetensors_header.FLOATS else t.bytes for t in stored]
    largest = max(t.numel * wide for t in stored)
    whole = int(1.1 * base.parameters * wide) if base.stored_quantized else 0  # unpacked at once
    names = {name.casefold() for name, _ in request.variant}
    adapters = [i for i in library.all() if i.name.casefold() in names]
    weights = max(sum(sizes), base.parameters * item if base.stored_quantized else 0)
    return MergeNeeds(
        precision=precision,
        disk_bytes=weights + _beside_weights(Path(base.path)) + HEADER_BYTES,
        disk_free_bytes=shutil.disk_usage(_existing(Path(request.destination))).free,
        memory_bytes=sum(4 * i.parameters for i in adapters)
        + max(MEMORY_PER_TENSOR * largest + MODULES_BYTES, whole),
        memory_free_bytes=int(psutil.virtual_memory().available),
        files=len(shard_sizes(sizes, request.shard_bytes)),
    )


def target_precision(
    request: Merge, base: ModelFacts, stored: list[safetensors_header.StoredTensor]
) -> str:
    """Return the type of the merged weights.

    "as-base" means the type of the loaded base, or the type of its full-precision files if the
    loaded base is quantised.
    """
    if request.precision != "as-base":
        return request.precision
    if base.precision in BYTES and not is_quantised(base):
        return base.precision
    floats = [t for t in stored if t.dtype in STORED_NAMES]
    return STORED_NAMES[max(floats, key=lambda t: t.numel).dtype] if floats else "fp32"


def merge_precision(request: Merge, base: ModelFacts) -> str:
    """Return the type that the merge is computed in: the wider of the base's and the target's.

    So an fp32 base merged into bf16 files is rounded only once, at the end.
    """
    kinds = {request.precision, base.precision} & set(BYTES)
    return kinds.pop() if len(kinds) == 1 and not is_quantised(base) else "fp32"


def is_quantised(base: ModelFacts) -> bool:
    """Return whether the loaded base has fewer bits than its files."""
    return getattr(base, "quantization", "none") not in (None, "", "none")


def shard_sizes(sizes: list[int], limit: int) -> list[list[int]]:
    """Split tensors into files of at most `limit` bytes, in order; returns the indices per file."""
    shards: list[list[int]] = [[]]
    filled = 0
    for number, size in enumerate(sizes):
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(number)
        filled += size
    return shards


def _check_adapter(info: AdapterInfo, strength: float, config: dict[str, Any]) -> None:
    if (info.strength == "on-off" or config.get("use_dora")) and strength != 1.0:
        raise Unsupported(
            f"{info.name!r} is a DoRA adapter: it works at strength 1 only, got {strength:g}.",
            cure="Set its strength to 1 or leave it out.",
        )
    reason = _unmergeable(config)
    if reason:
        raise Unsupported(
            f"{info.name!r} cannot be merged tensor by tensor: {reason}.",
            cure="Convert it to plain LoRA first, or leave it out.",
        )


def _unmergeable(config: dict[str, Any]) -> str:
    """Return why an adapter's low-rank weights are not its whole change; empty if they are."""
    if config.get("peft_type", "LORA") != "LORA":
        return f"it is a {config.get('peft_type')} adapter, not LoRA"
    start = config.get("init_lora_weights", True)
    reasons = {
        "it replaces whole layers (modules_to_save)": config.get("modules_to_save"),
        "it trains single tokens (trainable_token_indices)": config.get("trainable_token_indices"),
        "it changes biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        f"its initialisation ({init_methods.name_of(start)}) changed the base itself": (
            init_methods.changes_the_base(start)
        ),
        "it repeats layers (layer_replication)": config.get("layer_replication"),
        "it is active only after an invocation text (aLoRA)": config.get("alora_invocation_tokens"),
        "it is of a variant that merging does not support": any(
            config.get(key)
            for key in (
                "use_bdlora",
                "arrow_config",
                "kasa_config",
                "use_qalora",
                "megatron_config",
            )
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name!r} has no readable adapter_config.json: {error}.") from None
    return config if isinstance(config, dict) else {}


def _beside_weights(folder: Path) -> int:
    """Return the bytes of the files that are copied, such as tokenizer and configuration."""
    files = (file for file in folder.iterdir() if file.suffix != ".safetensors" and file.is_file())
    return sum(file.stat().st_size for file in files)


def _existing(path: Path) -> Path:
    """Return the path itself or its nearest parent that exists."""
    path = Path(os.path.abspath(path.expanduser()))
    return next(each for each in (path, *path.parents) if each.exists())
