"""Checkpoints whose files are already quantised: which are read as they are, and which are not.

bitsandbytes' 4-bit and 8-bit files are loaded as they are. FP8 and MXFP4 are unpacked when they are
read: each weight is a stored number times its scale, rounded once to the loaded type. All others
need libraries or kernels of their own, so the full-precision model is named instead.
"""

import re
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import BitsAndBytesConfig

from backend.catalogue.precisions import TORCH_NAMES
from backend.catalogue.quantizations import QUANTIZATIONS
from backend.engine.models import config_file, quantization
from backend.errors import ModelError, Unsupported
from backend.files import read_limits, safetensors_header
from backend.files.foreign_files import read_text
from backend.files.safetensors_header import StoredTensor
from backend.requests import LoadModel

KEY = "quantization_config"
BITSANDBYTES = "bitsandbytes"
UNPACKED = ("fp8", "mxfp4")
TITLES = {
    "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "mxfp4": "MXFP4", "hqq": "HQQ", "aqlm": "AQLM",
    "eetq": "EETQ", "vptq": "VPTQ", "spqr": "SpQR", "torchao": "torchao", "quanto": "Quanto",
}  # fmt: skip
COMPUTE = {"float32": "fp32", "bfloat16": "bf16"}
"""Compute types that are kept; gradients overflow in fp16, so it is replaced."""
PARTS = re.compile(
    r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+|SCB|weight_format)$"
)
NOT_LOADED = re.compile(r"\.(quant_state\.\w+|weight_format)$")
HUB_NAME = re.compile(r"\w[\w.-]{0,100}/\w[\w.-]{0,100}")


class Stored(NamedTuple):
    """How the files of a base are quantised."""

    title: str
    kind: str
    """The quantisation of the loaded base: nf4, fp4 or int8; "none" where it is unpacked."""
    double_quant: bool
    compute: str
    settings: dict[str, Any]
    original: str
    """The name of the full-precision model; empty where no file says it."""

    @property
    def is_unpacked(self) -> bool:
        return self.kind == "none"


def of(folder: Path, config: dict[str, Any], name: str) -> Stored | None:
    """Return how a base's files are quantised; None where they are not.

    Raises ModelError where its config.json does not say it in a known form, and Unsupported where
    files of this kind cannot be read right, naming the full-precision model.
    """
    settings = _settings(config, name)
    if settings is None:
        return None
    original = original_of(folder, config, name)
    method = str(settings.get("quant_method") or "").lower()
    if not method and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = BITSANDBYTES
    if method == BITSANDBYTES:
        return _of_bitsandbytes(settings, original, name)
    title = TITLES.get(method, method[:40])
    if method in UNPACKED and settings.get("expert_dtype", "fp8") == "fp8":
        return Stored(title, "none", False, "", settings, original)
    if not method:
        raise ModelError(
            f"{name}/config.json says that it is quantised, but not how (no quant_method).",
            cure=f"{_instead(original)}.",
        )
    raise Unsupported(
        f"{name} is a copy that is already quantised with {title}, which is not read here.",
        cure=f"{_instead(original)}.",
    )


def _settings(config: dict[str, Any], name: str) -> dict[str, Any] | None:
    texts = (config, *(part for part in config.values() if isinstance(part, dict)))
    found = next((part[KEY] for part in texts if part.get(KEY)), None)
    if found is None or isinstance(found, dict):
        return found
    raise ModelError(
        f"{name}/config.json says {KEY} = {str(found)[:60]!r}, which is no description of a "
        "quantisation.",
        cure="Download it again, or load the full-precision model.",
    )


def _of_bitsandbytes(settings: dict[str, Any], original: str, name: str) -> Stored:
    try:
        read = BitsAndBytesConfig.from_dict(dict(settings))
    except Exception as error:
        raise ModelError(
            f"{name}/config.json describes a quantisation that bitsandbytes does not know: "
            f"{config_file.first_line(error)}",
            cure=f"{_instead(original)}.",
        ) from error
    kind = "int8" if read.load_in_8bit else str(read.bnb_4bit_quant_type)
    if kind not in QUANTIZATIONS or not (read.load_in_8bit or read.load_in_4bit):
        raise Unsupported(
            f"{name} is quantised with bitsandbytes in a way that is not known ({kind[:40]}).",
            cure=f"{_instead(original)}.",
        )
    four = kind != "int8"
    compute = COMPUTE.get(str(read.bnb_4bit_compute_dtype).removeprefix("torch."), "")
    title = QUANTIZATIONS[kind].title
    double = four and bool(read.bnb_4bit_use_double_quant)
    return Stored(title, kind, double, compute if four else "", settings, original)


def _instead(original: str) -> str:
    if original:
        return f"Load {original}, and choose the quantisation here"
    return "Load the full-precision model that it was made from, and choose the quantisation here"


def original_of(folder: Path, config: dict[str, Any], name: str) -> str:
    """Return the Hub id of the model that a copy was made from, as its card or config says.

    Only the name is read: nothing is looked up or downloaded.
    """
    said = [_in_card(folder), config.get("_name_or_path")]
    for each in said:
        if isinstance(each, str) and HUB_NAME.fullmatch(each) and each != name:
            return each
    return ""


def _in_card(folder: Path) -> str:
    """Return the model that a card says it is a quantised copy of; empty where it says none."""
    try:
        card = read_text(folder / "README.md", read_limits.CARD_BYTES, "README.md")
    except (OSError, ValueError, ModelError):
        return ""
    first, *lines = card.splitlines() or [""]
    metadata = takewhile(lambda line: line.strip() != "---", lines if first == "---" else [])
    found, relation = "", "quantized"
    for line in metadata:
        key, _, value = line.partition(":")
        if key == "base_model":
            listed = value.strip() or next(metadata, "").strip().removeprefix("-")
            found = listed.strip("[] ").partition(",")[0].strip("\"' ")
        elif key == "base_model_relation":
            relation = value.strip("\"' ")
    return found if relation == "quantized" else ""


def in_files(stored: Stored | None, folder: Path, name: str) -> Stored | None:
    """Return how a folder's weights are quantised, where the files agree with config.json.

    Full-precision weights of which it says that they are in FP8 or MXFP4 are read as they are.
    Raises ModelError where such weights should be packed by bitsandbytes.
    """
    if stored is None:
        return None
    tensors = safetensors_header.tensors(folder)
    if stored.is_unpacked:
        if all(tensor.dtype in safetensors_header.FLOATS for tensor in tensors):
            return None
        _require_unpackable(stored, {tensor.key: tensor for tensor in tensors}, name)
        return stored
    if not any(PARTS.search(tensor.key) for tensor in tensors):
        raise ModelError(
            f"{name}/config.json says that its files are quantised to {stored.title}, but they "
            "hold no quantised weights.",
            cure=f"Download it again. {_instead(stored.original)}.",
        )
    return stored


def _require_unpackable(stored: Stored, tensors: dict[str, StoredTensor], name: str) -> None:
    """Raise Unsupported where a packed weight has no scales, or scales of uneven blocks.

    Transformers 5.23 divides a weight's rows evenly among its scales. Where the last block is
    shorter, it would take wrong scales for most rows, without an error.
    """
    for tensor in tensors.values():
        if tensor.dtype.startswith("F8_E4M3") or tensor.dtype.startswith("F8_E5M2"):
            fits = _has_even_blocks(tensor, tensors.get(f"{tensor.key}_scale_inv"), stored)
        elif tensor.key.endswith("_blocks"):
            scales = tensors.get(f"{tensor.key.removesuffix('_blocks')}_scales")
            fits = scales is not None and scales.shape == tensor.shape[:-1]
        else:
            continue
        if not fits:
            raise Unsupported(
                f"{name} stores {tensor.key} in {stored.title} with scales that Transformers would "
                "not apply correctly.",
                cure=f"{_instead(stored.original)}.",
            )


def _has_even_blocks(weight: StoredTensor, scales: StoredTensor | None, stored: Stored) -> bool:
    """Tell whether the scales of an FP8 weight are one for all, or one for each full block."""
    if scales is None:
        return False
    if scales.numel == 1:
        return True
    blocks = stored.settings.get("weight_block_size")
    return (
        isinstance(blocks, list)
        and len(scales.shape) == len(blocks) == len(weight.shape) == 2
        and all(
            count == 1 or size == count * block
            for size, count, block in zip(weight.shape, scales.shape, blocks, strict=True)
        )
    )


def resolve(
    request: LoadModel, stored: Stored | None, name: str, device: torch.device
) -> LoadModel:
    """Return the request with the quantisation of the files; raises Unsupported for another one."""
    if stored is None:
        return request
    if request.quantization not in ("none", stored.kind):
        raise Unsupported(
            f"The files of {name} are already quantised to {stored.title}, so they cannot be "
            f"quantised to {request.quantization}.",
            cure=f"Choose none, which loads them as they are. {_instead(stored.original)}.",
        )
    if request.double_quant and not stored.double_quant:
        raise Unsupported(
            f"The files of {name} are quantised without double quantisation.",
            cure="Switch double quantisation off.",
        )
    compute = request.compute_dtype if request.compute_dtype != "auto" else stored.compute
    wanted = {"quantization": stored.kind, "double_quant": stored.double_quant}
    if stored.kind in ("nf4", "fp4"):
        asked = request.model_copy(update=wanted)
        wanted["compute_dtype"] = compute or quantization.compute_type(asked, device)
    return request.model_copy(update=wanted)


def reading(stored: Stored, request: LoadModel) -> dict[str, Any]:
    """Return the `quantization_config` with which Transformers reads the files."""
    if stored.is_unpacked:
        return {**stored.settings, "dequantize": True}
    if stored.kind == "int8":
        return stored.settings
    return {**stored.settings, "bnb_4bit_compute_dtype": TORCH_NAMES[request.compute_dtype]}


def packed_bytes(files: list[Path], dtype: torch.dtype) -> int:
    """Return the bytes that bitsandbytes' files take when loaded, from their headers alone.

    Packed weights and their scales keep their bytes; all other weights take those of `dtype`.
    """
    tensors = [each for file in files for each in safetensors_header.read_header(file)]
    packed = {re.sub(r"\.weight\..*$|\.SCB$", "", t.key) for t in tensors if PARTS.search(t.key)}
    total = 0
    for tensor in tensors:
        if NOT_LOADED.search(tensor.key):
            continue
        whole = tensor.key.removesuffix(".weight") not in packed and not PARTS.search(tensor.key)
        total += tensor.numel * dtype.itemsize if whole else tensor.bytes
    return total


def settle(model: Any, stored: Stored | None, dtype: torch.dtype) -> None:
    """Bring the weights that are not quantised to `dtype`, and let an unpacked model stay so.

    Transformers 5.23 leaves such weights in their stored dtype. It would also quantise all weights
    of an unpacked model again when it is saved, without saying so in its config.json.
    """
    if stored is None:
        return
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    packed = {f"{name}.weight" for name, _ in quantization.layers(model)}
    for name, parameter in model.named_parameters():
        whole = parameter.is_floating_point() and name not in packed
        if whole and kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    if stored.is_unpacked and hasattr(model, "_weight_conversions"):
        del model._weight_conversions


def note(stored: Stored | None, request: LoadModel) -> str:
    """Return a sentence about files that are already quantised; empty where they are not."""
    if stored is None:
        return ""
    of = f" of {stored.original}" if stored.original else ""
    if stored.is_unpacked:
        return (
            f"The files are a copy{of} in {stored.title}. They were unpacked, so the model takes "
            "as much memory as in full precision."
        )
    replaced = "" if stored.compute or stored.kind == "int8" else (
        f" Its own compute type was replaced by {request.compute_dtype}."
    )  # fmt: skip
    return (
        f"The files are a copy{of} that is already quantised to {stored.title}, so adapters are "
        "merged into the full-precision model, not into this copy." + replaced
    )
