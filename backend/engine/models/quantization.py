"""Quantised bases: what is refused, how bitsandbytes is told, and what guards against its faults.

Nothing here knows adapters. A quantised base is the same base as the one in full precision: the
same adapters fit, so its fingerprint is that of the checkpoint it was quantised from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes import cextension
from bitsandbytes.autograd._functions import MatMul8bitFp, MatmulLtState
from transformers import BitsAndBytesConfig
from transformers.modeling_utils import PreTrainedModel

from backend.catalogue.quantizations import QUANTIZATIONS
from backend.engine.core import devices
from backend.engine.core.dtypes import DTYPES
from backend.errors import Unsupported
from backend.requests import LoadModel

_forward_8bit = MatMul8bitFp.forward


def require_possible(
    request: LoadModel,
    config: dict[str, Any],
    precision: str,
    name: str,
    *,
    device: torch.device = devices.CPU,
) -> None:
    """Raise Unsupported where a base cannot be quantised right, before a weight is read."""
    stored = config.get("quantization_config")
    if stored:
        method = stored.get("quant_method", "an unknown method")
        raise Unsupported(
            f"{name} is stored quantised already ({method}).",
            cure="Load the model it was made from, and choose the quantisation here.",
        )
    if request.quantization == "none":
        return
    if precision == "fp16":
        raise Unsupported(
            f"A base quantised to {request.quantization} cannot be trained right in fp16: "
            "its gradients overflow.",
            cure="Choose bf16 or fp32 as precision.",
        )
    if reason := blocker(device):
        raise Unsupported(
            reason, cure="Load the base without quantisation, or choose cpu as device."
        )


def blocker(device: torch.device) -> str:
    """Return why bitsandbytes cannot quantise on a device; empty where it can.

    A GPU that is on another machine counts as one where it can, unless it is Apple's.
    """
    if device.type == "mps":
        return (
            "bitsandbytes quantises on Apple GPUs with program code that it downloads from the "
            "Hub, and no such code is run here."
        )
    missing = isinstance(cextension.lib, cextension.ErrorHandlerMockBNBNativeLibrary)
    if missing and devices.is_gpu(device) and device.type == devices.gpu():
        kind = devices.GPUS[device.type]
        return f"bitsandbytes {bnb.__version__} has no library for this {kind} and this PyTorch."
    return ""


def bnb_config(request: LoadModel, device: torch.device) -> BitsAndBytesConfig | None:
    """Return what Transformers needs to quantise while it reads; None for full precision.

    Everything is said: Transformers' own defaults are fp4 and fp32 whatever the device.
    """
    if request.quantization == "none":
        return None
    if request.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=request.quantization,
        bnb_4bit_use_double_quant=request.double_quant,
        bnb_4bit_compute_dtype=DTYPES[compute_type(request, device)],
    )


def compute_type(request: LoadModel, device: torch.device) -> str:
    """Return what 4-bit weights are unpacked to."""
    if request.compute_dtype != "auto":
        return request.compute_dtype
    return "bf16" if devices.is_gpu(device) and devices.computes_bf16(device) else "fp32"


def computed_in(request: LoadModel, device: torch.device) -> str:
    """Return what 4-bit layers are unpacked to; empty where nothing is, or where inputs decide."""
    return compute_type(request, device) if request.quantization in ("nf4", "fp4") else ""


def guard(model: PreTrainedModel) -> None:
    """Keep bitsandbytes 0.50.2 from computing wrongly; call it right after loading.

    - 4-bit on processors with AVX512-BF16: the first answer would re-pack weights in place, after
      which gradients are wrong (cosine 0.3) and saving changes the answers, all without an error.
    - 8-bit on processors: evaluation would quantise activations too, with outlier columns that
      depend on the other rows, so that an answer depended on its neighbours. The way that training
      computes is exact for the stored weights, and many times faster; it is used throughout.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, bnb.nn.Linear8bitLt) and module.weight.device.type == "cpu":
            module.state.__class__ = _WeightOnlyState
    MatMul8bitFp.forward = staticmethod(_forward_keeping_nothing)


def layers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """Return the quantised layers by name."""
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def state_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return the tensors of quantised layers that are neither parameters nor buffers."""
    found: list[torch.Tensor | None] = []
    for _, module in layers(model):
        weight: Any = module.weight
        if isinstance(module, bnb.nn.Linear8bitLt):
            found += [weight.SCB, module.state.SCB]
        else:
            state = weight.quant_state
            found += [state.absmax, state.code, state.offset]
            found += [state.state2.absmax, state.state2.code] if state.nested else []
    return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]


def layer_bytes(model: torch.nn.Module) -> tuple[int, int]:
    """Return the bytes of the quantised layers as they are, and as they would be in fp32."""
    modules: list[Any] = [module for _, module in layers(model)]
    weights = sum(m.weight.numel() * m.weight.element_size() for m in modules)
    states = sum(t.numel() * t.element_size() for t in state_tensors(model))
    return weights + states, sum(4 * m.in_features * m.out_features for m in modules)


def numbers(model: torch.nn.Module) -> int:
    """Return how many numbers a model has, whatever they are packed into."""
    modules: list[Any] = [module for _, module in layers(model)]
    packed = sum(m.weight.numel() for m in modules)
    whole = sum(m.in_features * m.out_features for m in modules)
    return sum(p.numel() for p in model.parameters()) - packed + whole


def describe(request: LoadModel, model: PreTrainedModel, device: torch.device) -> str:
    """Say in a sentence what quantising did."""
    now, full = layer_bytes(model)
    kind = QUANTIZATIONS[request.quantization].title
    kind += " with double quantisation" if request.double_quant else ""
    computed = computed_in(request, device)
    inside = f", computed in {computed}" if computed else ""
    return (
        f"{len(layers(model))} layers are kept in {kind}{inside}, at {now / max(full, 1):.2f} of "
        "their size in fp32; embeddings, norms and the output head stay in full precision."
    )


@contextmanager
def prepared(model: PreTrainedModel) -> Iterator[str]:
    """Make a quantised base ready for learning, and as it was afterwards; says what was done.

    This is what PEFT's `prepare_model_for_kbit_training` does, in a form that can be undone: that
    one casts embeddings and head to fp32 for good (2 GB more on an 8 B model), switches reentrant
    checkpointing on, and freezes adapters that are there already (PEFT 0.21.2). Here the base is
    frozen, the norms are in fp32 meanwhile, and the head computes under the step's autocast.
    """
    if not layers(model):
        yield ""
        return
    model.requires_grad_(False)
    cast = narrow_norms(model)
    try:
        for parameter, _ in cast:
            parameter.data = parameter.data.float()
        norms = f"{len(cast)} norms are in fp32 meanwhile" if cast else "norms are in fp32 already"
        yield (
            f"Quantised base prepared: {len(layers(model))} layers frozen as they are, {norms}; "
            "both keep small corrections from being rounded away. Only the adapter learns, in fp32."
        )
    finally:
        for parameter, dtype in cast:
            parameter.data = parameter.data.to(dtype)  # from fp32 back: not a bit is lost


def about_checkpointing(chosen: bool, *, asked: bool) -> str:
    """Say in a sentence what is done about gradient checkpointing, and why."""
    if not chosen:
        return " Gradient checkpointing stays off: the run fits without, and is faster so."
    why = "as asked" if asked else "without it the run would not fit into memory"
    return (
        f" Gradient checkpointing is on ({why}), non-reentrant and with gradients for the inputs, "
        "without which a frozen base would pass none on."
    )


Norms = list[tuple[torch.nn.Parameter, torch.dtype]]


def narrow_norms(model: PreTrainedModel) -> Norms:
    """Return the norms of a quantised base that `prepared` widens to fp32, with their own types."""
    if not layers(model):
        return []
    return [
        (parameter, parameter.dtype)
        for parameter in model.parameters()
        if parameter.ndim == 1 and parameter.is_floating_point()
        and parameter.dtype != torch.float32
    ]  # fmt: skip


@contextmanager
def narrowed(norms: Norms) -> Iterator[None]:
    """Let widened norms be as they were loaded for a while; not a bit is lost either way."""
    for parameter, dtype in norms:
        parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, _ in norms:
            parameter.data = parameter.data.float()


class _WeightOnlyState(MatmulLtState):
    """Makes bitsandbytes compute 8-bit layers as it does in training, always."""

    @property
    def is_training(self) -> bool:
        return True

    @is_training.setter
    def is_training(self, value: bool) -> None:
        """The layer says in each forward pass whether it is training; here that changes nothing."""


def _forward_keeping_nothing(ctx: Any, *arguments: Any) -> torch.Tensor:
    """Let go of the input, which backward needs for a weight that learns only.

    bitsandbytes 0.50.2 keeps it outside autograd's reach, so that gradient checkpointing would save
    nothing on an 8-bit base.
    """
    output: torch.Tensor = _forward_8bit(ctx, *arguments)
    if not ctx.needs_input_grad[1]:
        ctx.A = None
    return output
