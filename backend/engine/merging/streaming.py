"""Merging tensor by tensor: each base weight is read, changed, written and released.

The base is a skeleton without weights, with PEFT's layers on it. One weight at a time is put into
its layer, which then merges as in `merge_and_unload`. So ranks, patterns, scalings, DoRA and the
order of operations are PEFT's own, and the result is equal bit for bit. Knows nothing of the
session.
"""

import json
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear, LoraLayer

from backend.engine.core import memory
from backend.engine.core.adapter_keys import key_of
from backend.engine.core.job_control import Control
from backend.engine.merging import merge_checks
from backend.engine.merging.merge_checks import Shard
from backend.engine.merging.safetensors_io import (
    DTYPES,
    NAMES,
    Behind,
    FileWriter,
    Planned,
    in_file_order,
    read,
    read_ahead,
)
from backend.engine.merging.stored_weights import StoredWeights
from backend.engine.methods import peft_io
from backend.engine.models import model_folder
from backend.errors import ModelError, Unsupported
from backend.files import safetensors_header
from backend.files.safetensors_header import FLOATS, StoredTensor
from backend.merge_requirements import shard_sizes

BLOCK_BYTES = 512 * 1024


class Part(NamedTuple):
    """An adapter to merge: internal id, display name, folder, strength."""

    id: str
    name: str
    folder: Path
    strength: float


class StreamedMerge:
    """A base without weights, with the adapters that change each weight that is passed in."""

    def __init__(self, folder: Path, parts: list[Part]) -> None:
        self.parts = parts
        self.weights = StoredWeights(folder)
        self.stored = self.weights.stored
        self.layers: dict[str, LoraLayer] = {}
        """The changed layers by the key of their weight in the files."""
        model = model_folder.skeleton(folder)
        self._peft = _built_on(model, parts)
        self._elsewhere = _unlike_a_layer(model)
        if self._elsewhere:
            return
        _fill(self._peft, model, parts)
        adapted = {
            f"{name}.weight": layer
            for name, layer in adapters_on(model)
            if any(part.id in layer.lora_A for part in parts)
        }
        _require_plain(model, adapted)
        for name, layer in adapted.items():
            key = self.weights.key_of(name)
            if key is None:
                self._elsewhere = f"its files do not contain {name} as one tensor"
            else:
                self.layers[key] = layer

    def obstacle(self, fingerprint: str, dtype: torch.dtype) -> str:
        """Return why the files do not hold the weights to change as they are; empty where they do.

        Transformers 5 renames and fuses weights of some architectures when it loads them. Renamed
        ones are changed in place, and fused ones are only copied. `dtype` is the session's.
        """
        if self._elsewhere:
            return self._elsewhere
        return self.weights.obstacle(fingerprint, dtype)

    def change(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        """Return a base weight with the adapters merged in, as in PEFT's `merge`.

        weight: (outputs, inputs), or (inputs, outputs) for Conv1D, in the computing dtype. Plain
        LoRA is merged in place, block by block of the weight's rows.
        """
        layer = self.layers[key]
        blocks = _blocks_of_rows(layer, weight)
        merged = [self._merge(layer, weight[rows], rows) for rows in blocks]
        return merged[0] if len(merged) == 1 else weight

    def _merge(self, layer: LoraLayer, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        holder = layer.get_base_layer()
        empty, ups = holder.weight, {id: up.weight for id, up in layer.lora_B.items()}
        holder.weight = torch.nn.Parameter(weight, requires_grad=False)
        for id, up in ups.items():
            layer.lora_B[id].weight = torch.nn.Parameter(up[rows], requires_grad=False)
        try:
            layer.merge(adapter_names=[part.id for part in self.parts])
            return holder.weight.data
        finally:
            holder.weight = empty
            layer.merged_adapters.clear()
            for id, up in ups.items():
                layer.lora_B[id].weight = up

    def expected_row(
        self, key: str, row: torch.Tensor, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute one row of a merged weight in float64, with the formula and without PEFT.

        row: (inputs,). Returns two (inputs,) tensors in float64: the merged row, and the size of
        the largest intermediate number of each value, which rounding is relative to.
        """
        layer = self.layers[key]
        base = current = row.double()
        largest = base.abs()
        for id in (part.id for part in self.parts if part.id in layer.lora_A):
            down, up = layer.lora_A[id].weight, layer.lora_B[id].weight
            delta = up[index].double() @ down.double() * layer.scaling[id]
            summed = up[index].double().abs() @ down.double().abs() * abs(layer.scaling[id])
            current = current + delta
            largest = torch.maximum(torch.maximum(largest, summed), current.abs())
            if id in layer.lora_magnitude_vector:
                magnitude = layer.lora_magnitude_vector[id].weight[index].double()
                factor = magnitude / (base + delta).norm()
                current = factor * current
                largest = torch.maximum(largest, factor.abs() * largest)
        return current, largest


def _blocks_of_rows(layer: LoraLayer, weight: torch.Tensor) -> list[slice]:
    """Return the blocks of a weight that are merged one by one.

    The change of a whole weight passes through memory three times; that of a block stays in the
    processor's cache. Two kinds of weights are merged whole: those with DoRA, which PEFT merges
    differently, and transposed ones, which have their outputs in columns.
    """
    step = BLOCK_BYTES // max(1, weight[:1].nbytes)
    turned = bool(getattr(layer, "fan_in_fan_out", False))
    if turned or layer.lora_variant or not 1 < step < weight.shape[0]:
        return [slice(None)]
    bounds = [*range(0, weight.shape[0] - step, step), weight.shape[0]]
    return [slice(*pair) for pair in pairwise(bounds)]


def adapters_on(model: torch.nn.Module) -> list[tuple[str, LoraLayer]]:
    """Return a base's adapted layers with their names in the base."""
    return [(name, part) for name, part in model.named_modules() if isinstance(part, LoraLayer)]


def plan(wanted: Iterable[Planned], shard_bytes: int) -> list[Shard]:
    """Distribute tensors over files, in the base's order and names."""
    ordered = in_file_order(list(wanted))
    numbers = shard_sizes([each.bytes for each in ordered], shard_bytes)
    if len(numbers) == 1:
        return [Shard(safetensors_header.WHOLE, ordered)]
    return [
        Shard(f"model-{i:05d}-of-{len(numbers):05d}.safetensors", [ordered[n] for n in shard])
        for i, shard in enumerate(numbers, 1)
    ]


def planned(stored: Iterable[StoredTensor], dtype: torch.dtype) -> list[Planned]:
    """Return stored tensors as they will be written: floats as `dtype`, others as they are."""
    return [Planned(t.key, NAMES[dtype] if t.dtype in FLOATS else t.dtype, t.shape) for t in stored]


def write(
    merge: StreamedMerge,
    folder: Path,
    shards: list[Shard],
    *,
    compute: torch.dtype,
    control: Control,
    share: float = 1.0,
) -> int:
    """Write the merged weights into a folder and verify them; return how many were changed.

    Raises VerificationFailed where a number is not finite, a recomputed row differs, or a file
    reads back differently. `share` is this step's share of the whole operation, for the progress.
    """
    tell = _progress(control, sum(t.bytes for s in shards for t in s.tensors), share)
    rows: dict[str, tuple[int, torch.Tensor]] = {}
    with torch.no_grad(), memory.exact_allocation(True):
        for number, shard in enumerate(shards, 1):
            stored = [merge.stored[each.key] for each in shard.tensors]
            with FileWriter(folder / shard.name, shard.tensors) as file, Behind() as behind:
                for each, tensor in zip(shard.tensors, read_ahead(stored), strict=True):
                    control.check_stop()
                    behind(file.write, _produce(merge, each, tensor, compute, rows))
                    tell(each.bytes, f"Writing file {number} of {len(shards)}")
    if len(shards) > 1:
        write_index(folder, shards)
    merge_checks.read_back(folder, shards, rows)
    return len(merge.layers)


def _produce(
    merge: StreamedMerge,
    planned: Planned,
    tensor: torch.Tensor,
    compute: torch.dtype,
    rows: dict[str, tuple[int, torch.Tensor]],
) -> torch.Tensor:
    """Return the tensor to write; of a changed tensor, check a recomputed row and keep it."""
    wanted = DTYPES[planned.dtype]
    if merge.stored[planned.key].dtype in FLOATS:
        tensor = tensor.to(compute)
    if planned.key not in merge.layers:
        return merge_checks.finite(tensor.to(wanted), planned, was=tensor)
    layer = merge.layers[planned.key]
    turned = bool(getattr(layer, "fan_in_fan_out", False))
    middle = (tensor.shape[1] if turned else tensor.shape[0]) // 2
    samples = {index: _row(tensor, index, turned).clone() for index in (0, middle)}
    merged = merge.change(planned.key, tensor)
    for index, row in samples.items():
        merge_checks.compare(planned.key, _row(merged, index, turned), *merge.expected_row(
            planned.key, row, index), parts=len(merge.parts))  # fmt: skip
    written = merge_checks.finite(merged.to(wanted), planned)
    rows[planned.key] = (written.shape[0] // 2, written[written.shape[0] // 2].clone())
    return written


def _row(weight: torch.Tensor, index: int, turned: bool) -> torch.Tensor:
    return weight[:, index] if turned else weight[index]


def write_index(folder: Path, shards: list[Shard]) -> None:
    """Write the list of which file holds which tensor."""
    total = sum(tensor.bytes for shard in shards for tensor in shard.tensors)
    where = {tensor.key: shard.name for shard in shards for tensor in shard.tensors}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / safetensors_header.INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _progress(control: Control, total: int, share: float) -> Callable[[int, str], None]:
    """Return the function that reports progress after each tensor."""
    started, done = time.monotonic(), 0

    def tell(n_bytes: int, text: str) -> None:
        nonlocal done
        done += n_bytes
        spent = time.monotonic() - started
        left = spent * (total - done) / done if done and spent > 1 else None
        control.progress(text, share * done / max(total, 1), left)

    return tell


# -- adapters on a skeleton ----------------------------------------------------------------------


def _built_on(model: torch.nn.Module, parts: list[Part]) -> PeftModel:
    """Let PEFT build its layers without weights."""
    peft: PeftModel | None = None
    for part in parts:
        config = peft_io.read_config(part.folder)
        peft = _add(model, peft, config, part.id)
    assert peft is not None
    return peft


def _unlike_a_layer(model: torch.nn.Module) -> str:
    """Return what PEFT adapts otherwise than a linear layer, such as all experts as one."""
    odd = next((name for name, part in adapters_on(model) if not isinstance(part, Linear)), "")
    return f"an adapter changes {odd}, which is not a linear layer" if odd else ""


def _fill(peft: PeftModel, model: torch.nn.Module, parts: list[Part]) -> None:
    """Place each adapter's tensors in the layers, with its strength."""
    layers = dict(adapters_on(model))
    for part in parts:
        _place(layers, part)
        for layer in layers.values():
            layer.set_scale(part.id, part.strength)
    peft.requires_grad_(False)
    peft.base_model.set_adapter([part.id for part in parts], inference_mode=True)
    peft.eval()


def _add(
    model: torch.nn.Module, peft: PeftModel | None, config: LoraConfig, adapter_id: str
) -> PeftModel:
    if peft is None:
        config.base_model_name_or_path = model.__dict__.get("name_or_path") or None  # no warning
        return get_peft_model(model, config, adapter_name=adapter_id, low_cpu_mem_usage=True)
    peft.add_adapter(adapter_id, config, low_cpu_mem_usage=True)
    return peft


def _place(layers: dict[str, LoraLayer], part: Part) -> None:
    """Put an adapter's stored tensors into its layers, in fp32 as PEFT keeps them.

    Raises ModelError where the file and the configuration do not describe the same adapter: every
    tensor needs a parameter, and every parameter a tensor.
    """
    places = {
        key_of(name, kind): getattr(layer, kind)[part.id]
        for name, layer in layers.items()
        for kind in ("lora_A", "lora_B", "lora_magnitude_vector")
        if part.id in getattr(layer, kind)
    }
    file = part.folder / peft_io.WEIGHTS
    stored = {t.key.removesuffix(".weight"): t for t in safetensors_header.read_header(file)}
    odd = sorted(stored.keys() ^ places.keys())
    if odd:
        raise ModelError(f"{part.name!r} does not fit this base: see {odd[0]}.")
    for key, module in places.items():
        tensor = read(stored[key]).float()
        if tensor.shape != module.weight.shape:
            raise ModelError(
                f"{part.name!r} does not fit this base: {key} has shape {tuple(tensor.shape)}."
            )
        if not merge_checks.all_finite(tensor):
            raise ModelError(
                f"{part.name!r} contains numbers that are not finite in {key}.",
                cure="Train it again.",
            )
        module.weight = torch.nn.Parameter(tensor, requires_grad=False)


def _require_plain(model: torch.nn.Module, layers: dict[str, LoraLayer]) -> None:
    """Raise Unsupported where a changed weight is tied to another layer.

    PEFT 0.21.2 merges into one of two tied weights, which makes the model wrong.
    """
    shared: dict[int, int] = {}
    for module in model.modules():
        own = module.weight if "weight" in module._parameters else None
        if own is not None:
            shared[id(own)] = shared.get(id(own), 0) + 1
    for key, layer in layers.items():
        name = key.removesuffix(".weight")
        if shared.get(id(layer.get_base_layer().weight), 0) > 1:
            raise Unsupported(
                f"An adapter changes {name}, a weight that this base uses in several places (tied "
                "embeddings, or layers that share weights).",
                cure="Leave that adapter out.",
            )
