"""Loading a base model: everything that can be checked is checked before a weight is read.

Knows nothing of the session: the caller unloads the old base first."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from backend.engine.core import devices, memory
from backend.engine.core.dtypes import DTYPES
from backend.engine.core.job_control import Control
from backend.engine.core.tolerances import bound
from backend.engine.models import (
    checkpoint_names,
    config_file,
    fingerprint,
    model_folder,
    quantization,
    stored_quantization,
    text_part,
    tokenizer_traits,
    trial_pass,
)
from backend.engine.models.gguf import converted
from backend.engine.models.stored_quantization import Stored
from backend.errors import ModelError, Unsupported
from backend.files import safetensors_header
from backend.files.safetensors_header import title
from backend.permissions import on_hub
from backend.requests import LoadModel
from backend.results import ModelFacts
from backend.runs import launch_commands

UNREADABLE = (
    ValueError, OSError, SafetensorError, KeyError, AttributeError, AssertionError, TypeError,
)  # fmt: skip
"""What Transformers raises where files do not match each other."""
_AHEAD = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers", "mtp_num_hidden_layers")
"""How configurations count layers that predict several tokens ahead."""
EMULATED = "this GPU has no native bf16 and converts, which is slow"


@dataclass(frozen=True)
class Plan:
    """A base that was found and passed all checks that need no memory for weights."""

    request: LoadModel
    folder: Path
    title: str
    device: torch.device
    precision: str
    precision_reason: str
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    memory_bytes: int
    passing_bytes: int
    """The extra bytes while the weights are read."""
    untouched: list[str]
    """The parts that no adapter changes, for people."""
    stored: Stored | None = None
    """How the files are quantised already; `request` then asks for just that."""
    notes: tuple[str, ...] = ()


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

    @property
    def bound(self) -> float:
        """How much results may differ (`tolerances`); quantised bases have their own bounds."""
        computed = self.facts.quantized_compute or self.facts.precision
        return max(
            bound(self.facts.precision, self.facts.quantization, self.device.type),
            bound(computed, "none", self.device.type),
        )


def prepare(request: LoadModel, control: Control, models_dir: Path | None = None) -> Plan:
    """Find a base by name, in a folder or on the Hub, and check it before a weight is read.

    Raises ModelError, NotFound or Unsupported; a loaded base is not touched.
    """
    device = devices.choose(request.device)
    choose_precision(request.precision, device)  # refused before anything is downloaded
    folder = model_folder.find(request.source, request.revision, control, models_dir)
    name = title(folder)
    config = model_folder.check_folder(folder)
    model_folder.require_known(folder, config)
    stored = stored_quantization.of(folder, config, name)
    stored = stored_quantization.in_files(stored, folder, name)
    request = stored_quantization.resolve(request, stored, name, device)
    quantized = request.quantization != "none"
    precision, reason = choose_precision(request.precision, device, quantized=quantized)
    quantization.require_possible(request, precision, device=device)
    skeleton = model_folder.skeleton(folder)  # checks that the weight files can hold it
    held, _ = fingerprint.predict(folder, DTYPES[precision])
    parameters, predicted, passing = _sizes(folder, skeleton, held, request, precision, stored)
    tokenizer = model_folder.read_tokenizer(folder, request.chat_template)
    return Plan(
        request=request,
        folder=folder,
        title=name,
        device=device,
        precision=precision,
        precision_reason=reason,
        tokenizer=tokenizer,
        parameters=parameters,
        memory_bytes=predicted,
        passing_bytes=passing,
        untouched=_untouched(folder, skeleton, 0 if stored else held),
        stored=stored,
        notes=_notes(folder, config, tokenizer, stored, request),
    )


def _sizes(
    folder: Path,
    skeleton: torch.nn.Module,
    held: int,
    request: LoadModel,
    precision: str,
    stored: Stored | None,
) -> tuple[int, int, int]:
    """Return parameters, bytes of the loaded base, and extra bytes while it is read.

    `held` is the number of parameters that the files hold.
    """
    if stored is not None:
        return fingerprint.predict_stored(folder, skeleton, stored, DTYPES[precision])
    parameters = min(held, sum(each.numel() for each in skeleton.parameters()))
    if request.quantization == "none":
        return parameters, parameters * DTYPES[precision].itemsize, 0
    sizes = fingerprint.predict_quantized(
        skeleton, request, precision, parameters, name=title(folder)
    )
    return parameters, *sizes


def _notes(
    folder: Path,
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    stored: Stored | None,
    request: LoadModel,
) -> tuple[str, ...]:
    """Return what a person should know about a checkpoint, a sentence or two for each trait."""
    found = [
        model_folder.about_code(folder, config),
        stored_quantization.note(stored, request),
        *tokenizer_traits.notes(tokenizer),
    ]
    return tuple(each for each in found if each)


def load(request: LoadModel, control: Control, models_dir: Path | None = None) -> Base:
    """Check a base and load it, where no other base has to be unloaded first."""
    return load_prepared(prepare(request, control, models_dir), control)


def load_prepared(plan: Plan, control: Control) -> Base:
    """Load a checked base; raises ModelError, or OutOfMemory before any memory is allocated."""
    started = time.monotonic()
    source, dtype = plan.request.source, DTYPES[plan.precision]
    wanted = plan.request.quantization
    kind = plan.precision if wanted == "none" else wanted
    memory.require(plan.memory_bytes + plan.passing_bytes, plan.device, f"{source} in {kind}")
    control.progress(f"Reading {source}", None, force=True)
    model = _read(plan, dtype)
    # PEFT writes this name into every adapter; a Hub id is more useful there than a cache folder.
    origin = converted.origin(plan.folder)
    model.name_or_path = source if on_hub(source) and not origin else str(plan.folder)
    memory.release(plan.device)  # temporary memory of reading and quantising
    measured = fingerprint.tensor_bytes(model)
    now, full = quantization.layer_bytes(model)
    facts = ModelFacts(
        name=model_folder.display_name(source, plan.folder),
        source=source,
        path=str(plan.folder),
        architecture=model.config.model_type,
        parameters=quantization.numbers(model) or plan.parameters,
        layers=text_part.layers(model),
        hidden_size=text_part.width(model),
        vocabulary=len(plan.tokenizer),
        context_length=text_part.context_length(model.config),
        precision=plan.precision,
        precision_reason=plan.precision_reason,
        device=str(plan.device),
        tied_embeddings=text_part.tied(model),
        chat_template=bool(plan.tokenizer.chat_template),
        given_template=plan.request.chat_template,
        memory_predicted_bytes=plan.memory_bytes,
        memory_measured_bytes=measured,
        fingerprint=fingerprint.fingerprint(model, plan.folder),
        seconds=time.monotonic() - started,
        quantization=wanted,
        quantization_note=(
            quantization.describe(plan.request, model, plan.device, stored=plan.stored is not None)
            if wanted != "none"
            else ""
        ),
        double_quant=plan.request.double_quant,
        quantized_compute=quantization.computed_in(plan.request, plan.device),
        bytes_saved=full * dtype.itemsize // 4 - now,
        quantized_bytes=now,
        quantized_full_bytes=full,
        untouched=plan.untouched,
        origin=origin,
        places=_places(plan.device),
        stored_quantized=plan.stored.title if plan.stored else "",
        original=plan.stored.original if plan.stored else "",
        notes=plan.notes,
    )
    return Base(model=model, tokenizer=plan.tokenizer, facts=facts, plan=plan)


def _places(device: torch.device) -> int:
    """Return how many processes of a run can have their own GPU, or their own core, here."""
    return devices.count() if devices.is_gpu(device) else launch_commands.cores()


def choose_precision(
    wanted: str, device: torch.device, *, quantized: bool = False
) -> tuple[str, str]:
    """Return the stored dtype of the weights and why.

    On a GPU without native bf16 this is fp16. A quantised base cannot be trained in fp16, so its
    weights that are not quantised stay in fp32.
    """
    native = devices.computes_bf16(device)
    if wanted == "fp16" and device.type == "cpu":
        raise Unsupported(
            "fp16 is slow and imprecise on a processor.", cure="Use bf16, which has the same size."
        )
    if wanted != "auto":
        emulated = wanted == "bf16" and not native
        return wanted, f"as chosen, though {EMULATED}" if emulated else "as chosen"
    if device.type == "cpu":
        return "fp32", "full precision, the default on a processor"
    if native:
        return "bf16", "half the memory, and GPUs compute it fastest"
    if quantized:
        return "fp32", f"{EMULATED}, and gradients of a quantised base overflow in fp16"
    return "fp16", f"half the memory; {EMULATED}"


def _read(plan: Plan, dtype: torch.dtype) -> PreTrainedModel:
    config = config_file.of_folder(plan.folder)
    wanted = None
    if plan.stored is not None:
        config.quantization_config = stored_quantization.reading(plan.stored, plan.request)
    else:
        wanted = quantization.bnb_config(plan.request, plan.device)
    placed = devices.is_gpu(plan.device) or plan.request.quantization != "none"
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            plan.folder,
            config=config,
            dtype=dtype,
            # Transformers would put a quantised base on any GPU it finds.
            device_map={"": plan.device} if placed else None,
            **({"quantization_config": wanted} if wanted else {}),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except UNREADABLE as error:
        raise ModelError(
            f"{plan.title} could not be read: {config_file.first_line(error)}",
            cure="Its files do not match each other: download it again.",
            details=str(error),
        ) from error
    except RuntimeError as error:
        if "conversion" in str(error):  # of weights that are stored in another form
            raise ModelError(
                f"{plan.title} could not be read: its quantised weights cannot be unpacked.",
                cure="Load the full-precision model instead.",
                details=str(error),
            ) from error
        if "mismatched" not in str(error):
            raise
        raise ModelError(
            f"The weights in {plan.title} do not match its config.json.", details=str(error)
        ) from error
    quantization.guard(model)
    stored_quantization.settle(model, plan.stored, dtype)
    _require_complete(model, report, plan.title)
    _compute_alike_in_both_modes(model)
    if not placed:
        _align(model)
    model.requires_grad_(False)
    model.eval()
    known = tokenizer_traits.embedded(plan.tokenizer) or len(plan.tokenizer)
    quantized = plan.request.quantization != "none"
    trial_pass.require_continues_text(model, known, plan.title, quantized=quantized)
    return model


def _align(model: PreTrainedModel) -> None:
    """Move weights that lie in their file's memory to where products read them fast.

    In a file they begin at any byte. Products in bf16 with weights that do not begin at a multiple
    of 64 bytes take a fifth longer (oneDNN, PyTorch 2.13).
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def _compute_alike_in_both_modes(model: PreTrainedModel) -> None:
    """Keep RWKV from halving its weights every few layers in evaluation mode, for fp16's sake.

    An adapter's weights are not halved with them (Transformers 5.23), so what answers would be
    another function than what was trained, and a merged model the trained one.
    """
    if getattr(model.config, "rescale_every", 0):
        model.config.rescale_every = 0


def _untouched(folder: Path, skeleton: torch.nn.Module, stored: int) -> list[str]:
    """Name the parts of a model that no adapter changes, and those of its files that stay there."""
    there = [part.text for part in text_part.outside(skeleton)]
    if stored <= sum(each.numel() for each in skeleton.parameters()):
        return there
    sizes = {tensor.key: tensor.numel for tensor in safetensors_header.tensors(folder)}
    unused = checkpoint_names.read_names(skeleton, sizes).unused
    return there + checkpoint_names.left_out({key: sizes[key] for key in unused})


def _require_complete(model: PreTrainedModel, report: dict[str, Any], name: str) -> None:
    """Raise where config.json and the weights do not describe the same tensors.

    Transformers fills missing weights with random numbers and drops layers that the config does
    not count, both without an error.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"The weights in {name} do not match its config.json: {missing[0]} is missing.",
            details="\n".join(missing),
        )
    known = {re.sub(r"\d+", "#", key) for key in model.state_dict()}
    ahead = _predicts_ahead(model)
    uncounted = sorted(
        key
        for key in report["unexpected_keys"]
        if re.sub(r"\d+", "#", key) in known and not ahead.match(key)
    )
    if uncounted:
        raise ModelError(
            f"The weights in {name} do not match its config.json: there is no place for "
            f"{uncounted[0]}.",
            details="\n".join(uncounted),
        )


def _predicts_ahead(model: PreTrainedModel) -> re.Pattern[str]:
    """Match the names of layers that predict several tokens ahead, which Transformers leaves out.

    Checkpoints such as GLM-4's store them after the last layer and count them separately.
    """
    config = text_part.text_config(model.config)
    extra = sum(int(getattr(config, name, None) or 0) for name in _AHEAD)
    first = text_part.layers(model)
    numbers = "|".join(map(str, range(first, first + extra)))
    return re.compile(rf".*\blayers\.({numbers})\." if extra else r"(?!)")
