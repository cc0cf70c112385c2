"""The memory that a base takes, before and after it is read, and its fingerprint (its identity)."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.modeling_utils import PreTrainedModel

from backend.engine.core.adapter_keys import PREFIX
from backend.engine.models import model_folder, quantization, stored_quantization
from backend.engine.models.checkpoint_names import read_names
from backend.engine.models.model_size import Shape, Storage, weight_bytes
from backend.engine.models.stored_quantization import Stored
from backend.errors import ModelError, Unsupported
from backend.files.safetensors_header import tensors, title, weight_files
from backend.requests import LoadModel

READ_AHEAD = 5  # full-precision layers in memory at the same time while Transformers 5.23 quantises


def predict(folder: Path, dtype: torch.dtype) -> tuple[int, int]:
    """Return the number of parameters and the bytes they will take, from the file headers alone."""
    count = 0
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    count += _numel(file.get_slice(key).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path.name} is damaged or cut off ({error}).", cure="Download it again."
            ) from None
    return count, count * dtype.itemsize


def predict_quantized(
    skeleton: torch.nn.Module, request: LoadModel, precision: str, parameters: int, *, name: str
) -> tuple[int, int]:
    """Return the bytes that a quantised base will take, and the extra bytes while it is read.

    Raises Unsupported where the model has no layer that can be quantised.
    """
    shape = Shape.of(skeleton, parameters)
    if not shape.linear:
        raise Unsupported(
            f"{name} has no layers that bitsandbytes can quantise.",
            cure="Load it without quantisation.",
        )
    storage = Storage(
        stored=precision, quantization=request.quantization, double_quant=request.double_quant
    )
    return weight_bytes(shape, storage), READ_AHEAD * 4 * shape.largest


def predict_stored(
    folder: Path, skeleton: torch.nn.Module, stored: Stored, dtype: torch.dtype
) -> tuple[int, int, int]:
    """Return parameters, bytes, and extra bytes while reading, where the files are quantised."""
    parameters = [each.numel() for each in skeleton.parameters()]
    total = sum(parameters)
    if stored.is_unpacked:  # one weight in fp32 at a time, beside its packed numbers
        return total, total * dtype.itemsize, READ_AHEAD * 4 * max(parameters)
    return total, stored_quantization.packed_bytes(weight_files(folder), dtype), 0


def tensor_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's tensors; shared tensors count once.

    The process's resident memory would include the allocator's reserves and differ each time.
    """
    tensors = (*model.parameters(), *model.buffers(), *quantization.state_tensors(model))
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def fingerprint(model: PreTrainedModel, folder: Path | None = None) -> str:
    """Hash the shapes and a sample of the weights, because an equal name alone proves nothing.

    The sample is rounded to bf16, so the same model in fp32 and bf16 has the same fingerprint. So
    has a quantised model: its quantised weights are read from the checkpoint in `folder`.
    """
    digest = hashlib.sha256()
    weights: dict[str, torch.Tensor] = {
        name.removeprefix(PREFIX).replace(".base_layer", ""): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }
    quantized = {name.replace(".base_layer", "") for name, _ in quantization.layers(model)}
    if quantized and folder is not None:
        names = {f"{name.removeprefix(PREFIX)}.weight" for name in quantized}
        weights.update(_stored(folder, names))
    for name, parameter in sorted(weights.items()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        stride = max(1, parameter.numel() // 64)
        sample = parameter.detach().reshape(-1)[::stride].to("cpu", torch.bfloat16)
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _stored(folder: Path, names: set[str]) -> dict[str, torch.Tensor]:
    """Return parameters from a checkpoint, mapped from the file until their values are read."""
    files = {tensor.key: tensor.file for tensor in tensors(folder)}
    skeleton = model_folder.skeleton(folder)
    known = read_names(skeleton, files)
    found = {name: _tensor(files[key], key) for name, key in known.keys.items() if name in names}
    for conversion in known.conversions if names - found.keys() else ():
        made = conversion.build(skeleton, lambda key: _tensor(files[key], key))
        found |= {name: tensor for name, tensor in made.items() if name in names}
    if missing := sorted(names - found.keys()):
        raise Unsupported(
            f"{title(folder)} stores {missing[0]} under another name, so its quantised form could "
            "not be identified as this base.",
            cure="Load it without quantisation.",
        )
    return found


def _tensor(file: Path, key: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(key)
        return tensor


def _numel(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())
