"""Loading a base model: everything that can be known is checked before a weight is read."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from backend.access import looks_like_path
from backend.engine import hub, memory
from backend.engine.control import Control
from backend.errors import ModelError, NotFound, Unsupported
from backend.requests import LoadModel
from backend.results import ModelFacts
from backend.settings import STARTER

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class Base:
    """A loaded base model. `facts` never change while it is loaded."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: ModelFacts

    @property
    def device(self) -> torch.device:
        return torch.device(self.facts.device)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.facts.precision]


def load(request: LoadModel, control: Control) -> Base:
    """Load a base model from the starter kit, a folder or the Hub.

    Raises ModelError, NotFound, Unsupported or OutOfMemory, each before memory is taken where that
    can be known.
    """
    started = time.monotonic()
    device = choose_device(request.device)
    precision, reason = choose_precision(request.precision, device)
    folder = find(request.source, request.revision, control)
    check_folder(folder)
    parameters, predicted = predict(folder, DTYPES[precision])
    memory.require(predicted, device, f"{request.source} in {precision}")
    control.progress(f"Reading {request.source}", None, force=True)
    before = memory.resident(device)
    model, tokenizer = _read(folder, DTYPES[precision], device)
    facts = ModelFacts(
        name=display_name(request.source, folder),
        source=request.source,
        path=str(folder),
        architecture=model.config.model_type,
        parameters=sum(p.numel() for p in model.parameters()) or parameters,
        layers=int(getattr(model.config, "num_hidden_layers", 0)),
        hidden_size=int(getattr(model.config, "hidden_size", 0)),
        vocabulary=len(tokenizer),
        context_length=int(getattr(model.config, "max_position_embeddings", 0) or 0),
        precision=precision,
        precision_reason=reason,
        device=str(device),
        tied_embeddings=bool(getattr(model.config, "tie_word_embeddings", False)),
        chat_template=bool(tokenizer.chat_template),
        memory_predicted_bytes=predicted,
        memory_measured_bytes=max(memory.resident(device) - before, 0),
        fingerprint=fingerprint(model),
        seconds=time.monotonic() - started,
    )
    return Base(model=model, tokenizer=tokenizer, facts=facts)


def choose_device(wanted: str) -> torch.device:
    """Return the device to compute on; raises Unsupported where there is none of that kind."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise Unsupported("This machine has no NVIDIA GPU that PyTorch can use.", cure="Use cpu.")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted, 0) if wanted == "cuda" else torch.device(wanted)


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Return the stored type of the weights and why."""
    if wanted == "fp16" and device.type == "cpu":
        raise Unsupported(
            "fp16 is slow and imprecise on a processor.", cure="Use bf16, which is the same size."
        )
    if wanted != "auto":
        return wanted, "as chosen"
    if device.type == "cuda":
        return "bf16", "half the memory, and GPUs compute it fastest"
    return "fp32", "exact, and the memory is there on a processor"


def find(source: str, revision: str | None, control: Control) -> Path:
    """Return the folder that a source means, downloading it where it is a Hub id."""
    if source == "starter":
        return STARTER / "model"
    if looks_like_path(source):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise NotFound(
                f"There is no folder {source!r}.",
                cure="Check the path; a Hub id looks like HuggingFaceTB/SmolLM2-135M.",
            )
        return folder.resolve()
    return hub.fetch_model(source, revision, control)


def display_name(source: str, folder: Path) -> str:
    """Return what people call this base."""
    return folder.name if looks_like_path(source) and source != "starter" else source


def check_folder(folder: Path) -> dict[str, Any]:
    """Return the folder's config; raises where it is no model that can be loaded safely."""
    config_file = folder / "config.json"
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder.name} holds an adapter, not a base model.",
            cure="Load the base it was made for first, then add the adapter.",
        )
    if not config_file.exists():
        raise ModelError(f"{folder.name} has no config.json, so it is not a model folder.")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{folder.name}/config.json is not valid JSON: {error}.") from None
    if "auto_map" in config:
        raise Unsupported(
            f"{folder.name} brings its own program code, which the workbench never runs.",
            cure="Choose a model whose architecture is part of Transformers.",
        )
    if not weight_files(folder):
        pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt*")
        )
        if pickled:
            raise Unsupported(
                f"{folder.name} has its weights only as {pickled[0]}, a format that can run code.",
                cure="Convert it to safetensors first.",
            )
        raise ModelError(f"{folder.name} has a config but no weights (no .safetensors file).")
    return dict(config)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that the model is read from; raises where one is missing."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ModelError(
            f"{folder.name} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}.",
            cure="Download it again.",
        )
    return [folder / name for name in sorted(names)]


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


def fingerprint(model: PreTrainedModel) -> str:
    """Hash the shapes and a sample of the weights, so that an equal name alone proves nothing.

    The sample is rounded to bf16, so that the same model stored in either type is the same base.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        name = name.removeprefix("base_model.model.").replace(".base_layer", "")
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        stride = max(1, parameter.numel() // 64)
        sample = parameter.detach().reshape(-1)[::stride].to("cpu", torch.bfloat16)
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def skeleton(folder: Path) -> torch.nn.Module:
    """Build the model's modules without memory for weights: enough to match names and count."""
    check_folder(folder)
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a base's tokenizer; raises ModelError where it has none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise ModelError(
            f"{folder.name} has no tokenizer that can be read.", details=str(error)
        ) from error
    return tokenizer


def _read(
    folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = read_tokenizer(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device} if device.type == "cuda" else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (ValueError, OSError, SafetensorError, KeyError) as error:
        raise ModelError(
            f"{folder.name} could not be read: {_short(error)}",
            cure="The files do not fit together, or this architecture is unknown here.",
            details=str(error),
        ) from error
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise ModelError(
            f"The weights in {folder.name} do not fit its config.json.", details=str(error)
        ) from error
    model.requires_grad_(False)
    return model.eval(), tokenizer


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]


def _numel(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())
