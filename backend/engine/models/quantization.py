"""Quantised bases: what is refused, the configuration of bitsandbytes, and fixes for its faults.

A quantised base counts as the same base as the one in full precision: the same adapters fit, so its
fingerprint is that of the checkpoint it was quantised from. Knows nothing of adapters.
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
    request: LoadModel, precision: str, *, device: torch.device = devices.CPU
) -> None:
    """Raise Unsupported where a base cannot be quantised correctly, before a weight is read."""
    if request.quantization == "none":
        return
    if precision == "fp16":
        raise Unsupported(
            f"A base quantised to {request.quantization} cannot be trained correctly in fp16: "
            "its gradients overflow.",
            cure="Choose bf16 or fp32 as precision.",
        )
    if reason := blocker(device):
        raise Unsupported(
            reason, cure="Load the base without quantisation, or choose cpu as device."
        )


def blocker(device: torch.device) -> str:
    """Return why bitsandbytes cannot quantise on a device; empty where it can.

    A GPU that this machine does not have counts as supported, unless it is Apple's.
    """
    if device.type == "mps":
        return (
            "On Apple GPUs, bitsandbytes quantises with program code that it downloads from the "
            "Hub. Such code is never run here."
        )
    missing = isinstance(cextension.lib, cextension.ErrorHandlerMockBNBNativeLibrary)
    if missing and devices.is_gpu(device) and device.type == devices.gpu():
        kind = devices.GPUS[device.type]
        return f"bitsandbytes {bnb.__version__} has no library for this {kind} and this PyTorch."
    return ""


def bnb_config(request: LoadModel, device: torch.device) -> BitsAndBytesConfig | None:
    """Return the quantisation configuration for Transformers; None for full precision.

    Every option is set explicitly: Transformers' defaults are fp4 and fp32 on any device.
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
    """Return the dtype that 4-bit weights are unpacked to."""
    if request.compute_dtype != "auto":
        return request.compute_dtype
    return "bf16" if devices.is_gpu(device) and devices.computes_bf16(device) else "fp32"


def computed_in(request: LoadModel, device: torch.device) -> str:
    """Return the dtype that 4-bit layers compute in; empty without 4-bit or if inputs decide."""
    return compute_type(request, device) if request.quantization in ("nf4", "fp4") else ""


def guard(model: PreTrainedModel) -> None:
    """Keep bitsandbytes 0.50.2 from computing wrongly; call this right after loading.

    - 4-bit on processors with AVX512-BF16: the first answer would re-pack weights in place. After
      that, gradients are wrong (cosine 0.3) and saving changes the answers, all without an error.
    - 8-bit on processors: evaluation would also quantise activations, with outlier columns that
      depend on the other rows, so an answer would depend on its neighbours. The code path of
      training is exact for the stored weights and many times faster; it is always used.
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
    """Return the bytes of the quantised layers, and the bytes that they would take in fp32."""
    modules: list[Any] = [module for _, module in layers(model)]
    weights = sum(m.weight.numel() * m.weight.element_size() for m in modules)
    states = sum(t.numel() * t.element_size() for t in state_tensors(model))
    return weights + states, sum(4 * m.in_features * m.out_features for m in modules)


def numbers(model: torch.nn.Module) -> int:
    """Return how many parameters a model has, also where they are packed."""
    modules: list[Any] = [module for _, module in layers(model)]
    packed = sum(m.weight.numel() for m in modules)
    whole = sum(m.in_features * m.out_features for m in modules)
    return sum(p.numel() for p in model.parameters()) - packed + whole


def describe(
    request: LoadModel, model: PreTrainedModel, device: torch.device, *, stored: bool = False
) -> str:
    """Describe what quantising did; `stored`: by whoever made the files, as they chose."""
    now, full = layer_bytes(model)
    kind = QUANTIZATIONS[request.quantization].title
    kind += " with double quantisation" if request.double_quant else ""
    computed = computed_in(request, device)
    inside = f", computed in {computed}" if computed else ""
    return (
        f"{len(layers(model))} layers are kept in {kind}{inside}, at {now / max(full, 1):.2f} of "
        "their fp32 size. "
        + (
            "All other weights are in full precision."
            if stored
            else "Embeddings, norms and the output head stay in full precision."
        )
    )


@contextmanager
def prepared(model: PreTrainedModel) -> Iterator[str]:
    """Prepare a quantised base for training, and restore it afterwards; yields a description.

    This follows PEFT's `prepare_model_for_kbit_training`, but can be undone. PEFT's function casts
    embeddings and head to fp32 permanently (2 GB more on an 8 B model), switches reentrant
    checkpointing on, and freezes existing adapters (PEFT 0.21.2). Here the base is frozen, the
    norms are in fp32 during training, and the head computes under the step's autocast.
    """
    if not layers(model):
        yield ""
        return
    model.requires_grad_(False)
    cast = narrow_norms(model)
    try:
        for parameter, _ in cast:
            parameter.data = parameter.data.float()
        norms = f"{len(cast)} norms cast to fp32" if cast else "norms already in fp32"
        yield (
            f"Quantised base prepared: {len(layers(model))} layers frozen, {norms} during "
            "training, so that small changes are not rounded away. Only the adapter is trained, in "
            "fp32."
        )
    finally:
        for parameter, dtype in cast:
            parameter.data = parameter.data.to(dtype)  # back from fp32, without any loss


def add_checkpointing(preparation: str, chosen: bool, *, asked: bool) -> str:
    """Add to the description of a base's preparation whether gradient checkpointing is on, and why.

    A base in full precision has no description; it gets one where checkpointing comes unasked.
    """
    if not preparation and (asked or not chosen):
        return preparation
    if not chosen:
        said = "Gradient checkpointing stays off: the run fits without it and is faster."
        return f"{preparation} {said}"
    why = "as requested" if asked else "without it the run would not fit into memory"
    said = (
        f"Gradient checkpointing is on ({why}). It is non-reentrant, with gradients for the "
        "inputs, which a frozen base needs to pass gradients on."
    )
    return f"{preparation} {said}".lstrip()


Norms = list[tuple[torch.nn.Parameter, torch.dtype]]


def narrow_norms(model: PreTrainedModel) -> Norms:
    """Return the norms of a quantised base that `prepared` casts to fp32, with their own dtypes."""
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
    """Put cast norms back into their loaded dtype for a while; both casts are lossless."""
    for parameter, dtype in norms:
        parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, _ in norms:
            parameter.data = parameter.data.float()


class _WeightOnlyState(MatmulLtState):
    """Makes bitsandbytes always compute 8-bit layers as in training."""

    @property
    def is_training(self) -> bool:
        return True

    @is_training.setter
    def is_training(self, value: bool) -> None:
        """Ignore the mode that the layer sets in each forward pass."""


def _forward_keeping_nothing(ctx: Any, *arguments: Any) -> torch.Tensor:
    """Release the input, which the backward pass needs only for a trainable weight.

    bitsandbytes 0.50.2 keeps it outside of autograd, so gradient checkpointing would save nothing
    on an 8-bit base.
    """
    output: torch.Tensor = _forward_8bit(ctx, *arguments)
    if not ctx.needs_input_grad[1]:
        ctx.A = None
    return output
