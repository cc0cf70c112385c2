"""The memory and the speed of each quantisation of a base, before it is loaded.

Memory is computed from the base's config.json alone. Speed is that of training steps of the
starter: measured on this machine on request and kept in the workspace, else taken from a committed
table.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend.catalogue.packaged_models import PACKAGED_MODELS
from backend.catalogue.quantizations import (
    QUANTIZATIONS,
    ROOM_FOR_A_RUN,
    SPEEDS,
    SPEEDS_FROM,
    SPEEDS_ON_GPU,
    SPEEDS_ON_GPU_FROM,
)
from backend.engine.core import devices, hub_download, memory
from backend.engine.core.job_control import Control
from backend.engine.data.token_arrays import Tokens
from backend.engine.methods import peft_io
from backend.engine.methods.targets import count_trainable, matched
from backend.engine.models import (
    config_file,
    loading,
    model_folder,
    quantization,
    stored_quantization,
)
from backend.engine.models.gguf import converted, parts
from backend.engine.models.gguf.checks import describe as about_text
from backend.engine.models.gguf.settings import configuration
from backend.engine.models.linear_layers import linear_layers
from backend.engine.models.model_size import Shape
from backend.engine.models.stored_quantization import Stored
from backend.engine.steps import packing, step_loss
from backend.engine.training import memory_estimate
from backend.engine.training.precision_choice import without_timing
from backend.errors import NotFound, Unsupported
from backend.files import damaged_files
from backend.files.atomic_files import write_text
from backend.files.safetensors_header import title
from backend.hub_address import gguf_file
from backend.permissions import looks_like_path
from backend.requests import LoadModel, Lora, QuantizationTable, Train
from backend.results import QuantizationChoice
from backend.results import QuantizationTable as Table
from backend.settings import STARTER, Settings
from backend.sizes import size_text

ROUNDS = 4
TOKENS, DOCUMENT = 512, 32
ANY_GPU_BYTES = 4 * 10**9
HERE = "measured on this machine with the starter"


def compare(
    request: QuantizationTable,
    control: Control,
    settings: Settings,
    *,
    free: Callable[[torch.device], int] | None = None,
) -> Table:
    """Return the table for a base; raises NotFound where the base does not exist."""
    elsewhere = request.device in devices.GPUS and request.device != devices.gpu()
    device = torch.device(request.device) if elsewhere else devices.choose(request.device)
    precision, _ = loading.choose_precision(request.precision, device)
    config, note = _config(request, control, settings)
    stored = _stored(config)
    shape = Shape.from_config(config)
    free_bytes = sys.maxsize if elsewhere else (free or memory.available)(device)
    speeds, source = _speeds(request, device, control, settings)
    choices = [
        _choice(
            id,
            shape,
            _usual_run(request, shape, device, id, stored),
            free=free_bytes,
            seconds=speeds[id],
            blocker=_blocker(id, shape, stored, device),
            stored=stored,
        )
        for id in QUANTIZATIONS
        if id == "none" or stored is None or id != stored.kind  # which is what "none" loads
    ]
    if stored is not None:
        recommended, reason = "none", _as_it_is(stored)
    elif elsewhere:
        recommended, reason = _for_elsewhere(choices)
    else:
        recommended, reason = recommend(choices, free_bytes, source)
    return Table(
        source=request.source,
        precision=precision,
        device=device.type,
        parameters=shape.parameters,
        free_bytes=0 if elsewhere else free_bytes,
        choices=choices,
        recommended=recommended,
        reason=reason,
        speed_from=source,
        note=note,
        elsewhere=elsewhere,
    )


def _stored(config: Path | dict[str, Any]) -> Stored | None:
    """Return how a base's files are quantised already; raises where such files are not read."""
    if isinstance(config, dict):
        return None
    name = title(config.parent)
    return stored_quantization.of(config.parent, config_file.read(config, name), name)


def _as_it_is(stored: Stored) -> str:
    if stored.is_unpacked:
        return f"The files are in {stored.title}; they are unpacked when the base is loaded."
    return (
        f"The files are already quantised to {stored.title}; they are loaded as they are, with "
        "Quantisation at none."
    )


def _blocker(id: str, shape: Shape, stored: Stored | None, device: torch.device) -> str:
    if id != "none" and not shape.linear:
        return "bitsandbytes cannot quantise this kind of model: it has linear layers of its own."
    if stored is not None and id not in ("none", stored.kind):
        return _as_it_is(stored)
    kept = id if stored is None else stored.kind
    return quantization.blocker(device) if kept != "none" else ""


def _for_elsewhere(choices: list[QuantizationChoice]) -> tuple[str, str]:
    """Return a recommendation and its reason for a GPU of unknown memory."""
    if blocker := next((each.blocker for each in choices if each.blocker), ""):
        return "none", blocker
    needs = {each.quantization: each.memory_bytes + each.run_bytes for each in choices}
    full, four = size_text(needs["none"]), size_text(needs["nf4"])
    unknown = "This machine has no such GPU, so its memory is not known."
    if needs["none"] <= ANY_GPU_BYTES:
        return "none", f"{unknown} The base and a usual run take {full}; any current GPU has that."
    return "nf4", (
        f"{unknown} The base and a usual run take {four} in 4-bit and {full} in full precision. "
        "Full precision is exact: use it if the GPU has enough memory."
    )


def recommend(
    choices: list[QuantizationChoice], free: int, speed_from: str = HERE
) -> tuple[str, str]:
    """Return the recommended quantisation and why; `speed_from` says where speeds come from."""
    by_id = {choice.quantization: choice for choice in choices}
    full, four = by_id["none"], by_id["nf4"]
    if four.blocker:
        enough = "" if full.fits else " The base does not fit into the free memory."
        return "none", f"{four.blocker}{enough}"
    saved = f"{full.memory_bytes / max(four.memory_bytes, 1):.1f}x"
    speed = speed_text(four.relative_seconds, speed_from)
    if full.memory_bytes * ROOM_FOR_A_RUN <= free:
        return "none", (
            f"Full precision is exact and fits. 4-bit uses {saved} less memory for the weights; "
            f"{speed}."
        )
    if four.fits:
        return "nf4", (
            "Full precision leaves too little memory for a run. "
            f"4-bit uses {saved} less memory for the weights; {speed}."
        )
    return "nf4", "Even 4-bit does not fit into the free memory: choose a smaller base."


def speed_text(relative: float, speed_from: str) -> str:
    """Say how long a step takes relative to full precision; a figure only where it was measured."""
    if speed_from == SPEEDS_ON_GPU_FROM:
        return "each step takes longer (how much was not measured)"
    measured = f"measured {'on this machine' if speed_from == HERE else 'on another machine'}"
    if abs(relative - 1) < 0.1:
        return f"each step takes about as long ({measured})"
    if relative > 1:
        return f"each step takes about {relative:.1f} times as long ({measured})"
    return f"each step is faster ({measured})"


def _config(
    request: QuantizationTable, control: Control, settings: Settings
) -> tuple[Path | dict[str, Any], str]:
    """Return the base's config.json, or what it will be, and what is done before it is loaded."""
    source = request.source
    if source == "starter":
        return STARTER / "model" / "config.json", ""
    if source in PACKAGED_MODELS:
        return PACKAGED_MODELS[source].sizes, ""
    if gguf_file(source) is not None:
        raise Unsupported(
            "The sizes of a GGUF file on the Hub are known when it is loaded: it is downloaded, "
            "then converted once into a folder in bf16, or in its own type if it is not quantised."
        )
    if files := model_folder.gguf_files(source, request.revision, control):
        return _of_gguf(files, control, settings)
    if not looks_like_path(source):
        return hub_download.fetch_config(source, request.revision), ""
    file = Path(source).expanduser() / "config.json"
    if not file.is_file():
        raise NotFound(
            f"There is no config.json in {source!r}.", cure="Choose the folder of a model."
        )
    return file, ""


def _of_gguf(
    files: tuple[Path, ...], control: Control, settings: Settings
) -> tuple[Path | dict[str, Any], str]:
    """Return the configuration of a model in GGUF files, and what converting them will do."""
    if (folder := converted.known_folder(files, settings.models_dir)) is not None:
        return folder / "config.json", f"It was {converted.origin(folder)} before."
    files = parts.of_file(files[0])
    about = converted.check(files, control)
    config = configuration(parts.header_of(files))
    return config.to_dict(), about_text(about, files)


def _usual_run(
    request: QuantizationTable,
    shape: Shape,
    device: torch.device,
    id: str,
    files: Stored | None,
) -> memory_estimate.Setup:
    """Describe a training run with default settings on a base of this shape."""
    train = Train(name="usual")
    id = files.kind if files is not None and id == "none" else id
    quantized = id != "none"
    stored, _ = loading.choose_precision(request.precision, device, quantized=quantized)
    known = without_timing(train, stored, device)
    layers = shape.adaptable
    config = peft_io.configure(train.adapter, layers, "")
    targets = matched(config, layers)
    return memory_estimate.Setup(
        stored=stored,
        quantization=id,
        double_quant=files.double_quant if files is not None else request.double_quant,
        computed=known[0] if known else "fp32" if device.type == "cpu" else "bf16",
        device=device.type,
        targets=tuple(targets),
        trainable=count_trainable(config, targets),
        tokens=train.tokens_per_step,
    )


def _choice(
    id: str,
    shape: Shape,
    usual: memory_estimate.Setup,
    *,
    free: int,
    seconds: float,
    blocker: str,
    stored: Stored | None = None,
) -> QuantizationChoice:
    kept = stored.kind if stored is not None and id == "none" else id
    known = QUANTIZATIONS[kept]  # type: ignore[index]
    needs = memory_estimate.estimate(shape, usual)
    size = needs.total - needs.run
    return QuantizationChoice(
        quantization=id,
        title=_title(id, kept, usual),
        memory_bytes=size,
        run_bytes=needs.run,
        relative_seconds=seconds,
        fits=size <= free,
        summary=known.summary,
        can=known.can,
        cannot=known.cannot,
        blocker=blocker,
    )


def _title(id: str, kept: str, usual: memory_estimate.Setup) -> str:
    if kept == "none":
        return f"full precision ({usual.stored})"
    title = QUANTIZATIONS[kept].title  # type: ignore[index]
    return title if id == kept else f"as it is: {title}"


def _speeds(
    request: QuantizationTable, device: torch.device, control: Control, settings: Settings
) -> tuple[dict[str, float], str]:
    if not request.measure:
        return known_speeds(device, settings)
    devices.choose(request.device)
    measured = measure(control, device)
    write_text(_speeds_file(device, settings), json.dumps(measured, indent=1))
    return measured, HERE


def known_speeds(device: torch.device, settings: Settings) -> tuple[dict[str, float], str]:
    """Return the time of a step in each quantisation, and where the figures come from."""
    nothing: dict[str, float] = {}
    kept = damaged_files.read_measured(
        _speeds_file(device, settings), _kept_speeds, missing=nothing
    )
    if kept:
        return kept, HERE
    if devices.is_gpu(device):
        return SPEEDS_ON_GPU, SPEEDS_ON_GPU_FROM
    return SPEEDS, SPEEDS_FROM


def _speeds_file(device: torch.device, settings: Settings) -> Path:
    return settings.workspace / f"quantization_speeds_{device.type}.json"


def _kept_speeds(content: bytes) -> dict[str, float]:
    kept = json.loads(content)
    return {id: float(kept[id]) for id in QUANTIZATIONS}


def measure(control: Control, device: torch.device) -> dict[str, float]:
    """Time training steps of the starter in each quantisation, relative to full precision.

    A quantisation that the device does not support keeps its figure from the committed table.
    """
    seconds: dict[str, float] = {}
    possible = [id for id in QUANTIZATIONS if id == "none" or not quantization.blocker(device)]
    for number, id in enumerate(possible):
        control.check_stop()
        control.progress(f"Timing {id}", number / len(possible), force=True)
        seconds[id] = _step_seconds(LoadModel(quantization=id, device=device.type), control)
    measured = {id: value / seconds["none"] for id, value in seconds.items()}
    return {**SPEEDS_ON_GPU, **measured}


def _step_seconds(request: LoadModel, control: Control) -> float:
    """Return the seconds of the fastest of a few steps on a separate base, not the session's."""
    base = loading.load(request, control)
    config = peft_io.configure(Lora(), linear_layers(base.model), "starter")
    peft = peft_io.apply(base.model, None, config, "ad_probe")
    ids = (np.arange(DOCUMENT) % base.facts.vocabulary).astype(np.int32)
    document = Tokens(ids, np.ones(DOCUMENT, dtype=bool))
    batch = packing.collate([document] * (TOKENS // DOCUMENT))
    peft.train()
    with step_loss.step_mode(base):
        return min(
            step_loss.time_step(peft, batch, base.device, base.facts.precision)
            for _ in range(ROUNDS)
        )
