"""Loading a base model: everything that can be known is checked before a weight is read."""

import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    __version__,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from backend.access import looks_like_path
from backend.checkpoint import title, weight_files
from backend.engine import hub, memory
from backend.engine.control import Control
from backend.errors import ModelError, NotFound, Unsupported
from backend.requests import LoadModel
from backend.results import ModelFacts
from backend.settings import STARTER

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Plan:
    """A base that was found and passed every check that needs no memory for weights."""

    request: LoadModel
    folder: Path
    title: str
    device: torch.device
    precision: str
    precision_reason: str
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    memory_bytes: int


@dataclass
class Base:
    """A loaded base model. `facts` never change while it is loaded."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: ModelFacts
    plan: Plan

    @property
    def device(self) -> torch.device:
        return torch.device(self.facts.device)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.facts.precision]


def prepare(request: LoadModel, control: Control) -> Plan:
    """Find a base in the starter kit, a folder or the Hub, and check it before a weight is read.

    Raises ModelError, NotFound or Unsupported; whatever was loaded is not touched.
    """
    device = choose_device(request.device)
    precision, reason = choose_precision(request.precision, device)
    folder = find(request.source, request.revision, control)
    _require_known(folder, check_folder(folder))
    parameters, predicted = predict(folder, DTYPES[precision])
    return Plan(
        request=request,
        folder=folder,
        title=title(folder),
        device=device,
        precision=precision,
        precision_reason=reason,
        tokenizer=read_tokenizer(folder),
        parameters=parameters,
        memory_bytes=predicted,
    )


def load(request: LoadModel, control: Control) -> Base:
    """Check a base and load it, where no other one has to leave first."""
    return load_prepared(prepare(request, control), control)


def load_prepared(plan: Plan, control: Control) -> Base:
    """Load a checked base; raises ModelError, or OutOfMemory before memory is taken."""
    started = time.monotonic()
    source, dtype = plan.request.source, DTYPES[plan.precision]
    memory.require(plan.memory_bytes, plan.device, f"{source} in {plan.precision}")
    control.progress(f"Reading {source}", None, force=True)
    model = _read(plan, dtype)
    # PEFT writes this name into every adapter, where a Hub id says more than a cache folder.
    from_hub = source != "starter" and not looks_like_path(source)
    model.name_or_path = source if from_hub else str(plan.folder)
    facts = ModelFacts(
        name=display_name(source, plan.folder),
        source=source,
        path=str(plan.folder),
        architecture=model.config.model_type,
        parameters=sum(p.numel() for p in model.parameters()) or plan.parameters,
        layers=int(getattr(model.config, "num_hidden_layers", 0)),
        hidden_size=int(getattr(model.config, "hidden_size", 0)),
        vocabulary=len(plan.tokenizer),
        context_length=int(getattr(model.config, "max_position_embeddings", 0) or 0),
        precision=plan.precision,
        precision_reason=plan.precision_reason,
        device=str(plan.device),
        tied_embeddings=bool(getattr(model.config, "tie_word_embeddings", False)),
        chat_template=bool(plan.tokenizer.chat_template),
        memory_predicted_bytes=plan.memory_bytes,
        memory_measured_bytes=tensor_bytes(model),
        fingerprint=fingerprint(model),
        seconds=time.monotonic() - started,
    )
    return Base(model=model, tokenizer=plan.tokenizer, facts=facts, plan=plan)


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
    return "fp32", "exact, as it can be on a processor"


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
    config_file, name = folder / "config.json", title(folder)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{name} holds an adapter, not a base model.",
            cure="Load the base it was made for first, then add the adapter.",
        )
    if not config_file.exists():
        raise ModelError(f"{name} has no config.json, so it is not a model folder.")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{name}/config.json is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{name}/config.json is not a JSON object.")
    if "auto_map" in config:
        raise Unsupported(
            f"{name} brings its own program code, which the workbench never runs.",
            cure="Choose a model whose architecture is part of Transformers.",
        )
    if not weight_files(folder):
        pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt*")
        )
        if pickled:
            raise Unsupported(
                f"{name} has its weights only as {pickled[0]}, a format that can run code.",
                cure="Convert it to safetensors first.",
            )
        raise ModelError(
            f"{name} has a config but no weights (no model.safetensors).",
            cure="Only safetensors are read: choose another base, or convert it first.",
        )
    return config


def _require_known(folder: Path, config: dict[str, Any]) -> None:
    """Raise where Transformers does not know the architecture or knows it for another task."""
    name, kind = title(folder), config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise Unsupported(
            f"{name} has the architecture {kind!r}, unknown to Transformers {__version__}.",
            cure="Choose a base with a known architecture, such as Llama, Qwen or Gemma.",
        )
    try:
        known = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"{name}/config.json cannot be used: {_short(error)}", details=str(error)
        ) from error
    if type(known) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Unsupported(
            f"{name} is a {kind} model, which does not continue text.",
            cure="Choose a causal language model, such as Llama, Qwen or Gemma.",
        )


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


def tensor_bytes(model: torch.nn.Module) -> int:
    """Return the bytes that a model's tensors take, shared ones once.

    The process's resident memory would tell of the allocator's reserves too, and differ each time.
    """
    tensors = (*model.parameters(), *model.buffers())
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def fingerprint(model: PreTrainedModel) -> str:
    """Hash the shapes and a sample of the weights, so that an equal name alone proves nothing.

    The sample is rounded to bf16, so that the same model stored in either type is the same base.
    """
    digest = hashlib.sha256()
    weights = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }
    for name, parameter in sorted(weights.items()):
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
            f"{title(folder)} has no tokenizer that can be read.", details=str(error)
        ) from error
    return tokenizer


def _read(plan: Plan, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            plan.folder,
            dtype=dtype,
            device_map={"": plan.device} if plan.device.type == "cuda" else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, OSError, SafetensorError, KeyError) as error:
        raise ModelError(
            f"{plan.title} could not be read: {_short(error)}",
            cure="Its files do not fit together: download it again.",
            details=str(error),
        ) from error
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise ModelError(
            f"The weights in {plan.title} do not fit its config.json.", details=str(error)
        ) from error
    _require_complete(model, report, plan.title)
    model.requires_grad_(False)
    return model.eval()


def _require_complete(model: PreTrainedModel, report: dict[str, Any], name: str) -> None:
    """Raise where config and weights disagree on what there is.

    Transformers fills missing weights with random numbers and drops layers that the config does
    not count, both without an error.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"The weights in {name} do not fit its config.json: {missing[0]} is missing.",
            details="\n".join(missing),
        )
    known = {re.sub(r"\d+", "#", key) for key in model.state_dict()}
    uncounted = sorted(k for k in report["unexpected_keys"] if re.sub(r"\d+", "#", k) in known)
    if uncounted:
        raise ModelError(
            f"The weights in {name} do not fit its config.json: there is no place for "
            f"{uncounted[0]}.",
            details="\n".join(uncounted),
        )


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]


def _numel(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())
