"""Attention in which each document of a pack attends only to itself.

Transformers isolates packed documents with one mask over the whole pack: it computes the attention
between documents and then discards it. Here documents of similar length are gathered into a batch,
computed with causal attention, and put side by side again: the same numbers for less work. Padding
inside such a batch comes after each document, where causal attention does not see it.

In half precision on an NVIDIA GPU a variable-length kernel does the same without the gathering
(Dao et al. 2022), where a trial with a layer's own shapes has given the same result.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from backend.engine.training.packing import Layout

NAME, COMPARED = "workbench_documents", "workbench_compared"
AGREES = 1e-5
"""How much `document_attention` may differ from a model's own attention, both in fp64."""
VARLEN_AGREES = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""How much outputs and gradients of a variable-length kernel may differ from the same attention in
fp32, relative to the largest value: a few roundings of the type."""
VARLEN_DEVICES, WITHOUT_FP64 = ("cuda",), ("mps", "xpu")
TRIAL_LENGTHS = (19, 7, 1)
"""Tokens of the documents on which a variable-length kernel is tried."""
log = logging.getLogger(__name__)


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each document; padding tokens after the layout (`few_lengths`) get zeros.

    query, key, value: (1, heads, tokens, head_dim), any float dtype; key and value may have fewer
    heads (grouped-query attention). Returns (1, tokens, heads, head_dim), as Transformers' own
    attention functions do.
    """
    if layout is None:
        raise ValueError("The pack has no layout.")
    with _in_full_precision(query.device):
        dtype = _computed(query)
        q, k, v = (each[0].to(dtype) for each in (query, key, value))
        if dropout == 0.0 and _takes_varlen(q, k, v):
            parts = _attend_varlen(q, k, v, layout, scaling, dropout)
        else:
            parts = _attend_grouped(q, k, v, layout, scaling, dropout)
    if (rest := query.shape[2] - sum(layout.lengths)) > 0:
        parts.append(parts[0].new_zeros(parts[0].shape[0], rest, parts[0].shape[2]))
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return joined.transpose(0, 1)[None].to(query.dtype), None


def _in_full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Keep autocast out of attention on a processor.

    There torch 2.13's attention in bf16 takes as long as the rest of the step, most of it in the
    backward pass. With attention in fp32 the whole step takes 0.8 of the time.
    """
    return torch.autocast("cpu", enabled=False) if device.type == "cpu" else nullcontext()


def _computed(query: torch.Tensor) -> torch.dtype:
    """Return the type to attend in: autocast's on a GPU, at least fp32 on a processor."""
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(query.dtype, torch.float32) if query.is_cpu else query.dtype


def _takes_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Tell whether the kernel was proven right for such tensors, (heads, tokens, head_dim)."""
    return value.shape == key.shape and _works.get(_kind(query, key, query.dtype), False)


def _kind(query: torch.Tensor, key: torch.Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
    return query.device, dtype, query.shape[0], key.shape[0], query.shape[2], key.shape[2]


_works: dict[tuple[Any, ...], bool] = {}
"""For each kind of layer that was tried on this machine, whether the kernel is right."""


def try_varlen(query: torch.Tensor, key: torch.Tensor) -> None:
    """Try the variable-length kernel for layers with such inputs, and use it there if it is right.

    query, key: (1, heads, tokens, head_dim); only their shapes and device matter. It is not tried
    in a training step: with gradient checkpointing, that has to be the same when recomputed.
    """
    if query.device.type not in VARLEN_DEVICES:
        return
    for dtype in VARLEN_AGREES:
        kind = _kind(query[0], key[0], dtype)
        if kind not in _works:
            with torch.inference_mode(False), torch.enable_grad():
                _works[kind] = _varlen_agrees(query[0], key[0], dtype)


def _varlen_agrees(query: torch.Tensor, key: torch.Tensor, dtype: torch.dtype) -> bool:
    """Compare outputs and gradients of the kernel with grouped attention in fp32."""
    if varlen_kernel() is None:
        return False
    tokens = sum(TRIAL_LENGTHS)
    layout = Layout.of(list(TRIAL_LENGTHS)).to(query.device)
    random = torch.Generator().manual_seed(0)
    shapes = [(each.shape[0], tokens, each.shape[2]) for each in (query, key, key)]
    given = [torch.randn(shape, generator=random).to(query.device, dtype) for shape in shapes]
    try:
        found = _with_gradients(_attend_varlen, given, layout)
        expected = _with_gradients(_attend_grouped, [each.float() for each in given], layout)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:  # a GPU or a width that it cannot do
        log.info("No variable-length attention here: %s", error)
        return False
    bound = VARLEN_AGREES[dtype]
    return all(_apart(f, e) <= bound for f, e in zip(found, expected, strict=True))


def _with_gradients(
    attend: Callable[..., list[torch.Tensor]], given: list[torch.Tensor], layout: Layout
) -> list[torch.Tensor]:
    """Return the output for query, key and value, (heads, tokens, head_dim), and all gradients."""
    inputs = [each.clone().requires_grad_() for each in given]
    with torch.autocast(inputs[0].device.type, enabled=False):
        out = torch.cat(attend(*inputs, layout, None, 0.0), dim=1)
        direction = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
        return [out, *torch.autograd.grad((out * direction).sum(), inputs)]


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    found, expected = found.detach().to(expected.dtype), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


@cache
def varlen_kernel() -> Callable[..., torch.Tensor] | None:
    """Return causal attention by documents: torch's, or that of an installed FlashAttention 2.

    It takes query, key, value: (tokens, heads, head_dim), fp16 or bf16; starts: (documents + 1,)
    int32; the longest document in tokens; and the scale. None where there is no such kernel.
    """
    try:
        by_torch = import_module("torch.nn.attention.varlen").varlen_attn  # since torch 2.10
        known = set(inspect.signature(by_torch).parameters)
    except (ImportError, AttributeError):
        known = set()

    def causal(q: Any, k: Any, v: Any, starts: Any, longest: int, scale: Any) -> Any:
        options = {"scale": scale, "window_size": (-1, 0), "enable_gqa": q.shape[1] != k.shape[1]}
        return by_torch(q, k, v, starts, starts, longest, longest, **options)

    if {"scale", "window_size", "enable_gqa"} <= known:
        return causal
    return _flash_attention() if is_flash_attn_2_available() else None


def _flash_attention() -> Callable[..., torch.Tensor]:
    attend = import_module("flash_attn").flash_attn_varlen_func

    def causal(q: Any, k: Any, v: Any, starts: Any, longest: int, scale: Any) -> Any:
        both = (starts, starts, longest, longest)
        return attend(q, k, v, *both, softmax_scale=scale, causal=True)

    return causal


def _attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
    dropout: float,
) -> list[torch.Tensor]:
    """Attend within all documents at once; the kernel has no dropout."""
    kernel, tokens = varlen_kernel(), sum(layout.lengths)
    assert kernel is not None
    assert dropout == 0.0
    q, k, v = (each[:, :tokens].transpose(0, 1) for each in (query, key, value))
    return [kernel(q, k, v, layout.starts, max(layout.lengths), scaling).transpose(0, 1)]


def _attend_grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
    dropout: float,
) -> list[torch.Tensor]:
    """Attend within documents of similar length, group by group; one batch holds a group.

    Heads are in the batch dimension, documents in that of heads.
    """
    repeat = query.shape[0] // key.shape[0]
    groups = zip(*(_Gathered.apply(each, layout) for each in (query, key, value)), strict=True)
    parts = []
    for group, (q, k, v) in zip(layout.groups, groups, strict=True):
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        q, k, v = (each.unflatten(1, (group.documents, group.longest)) for each in (q, k, v))
        out = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout
        )
        parts.append(out.flatten(1, 2))
    return [_Joined.apply(layout, *parts)]


class _Gathered(torch.autograd.Function):
    """(heads, tokens, head_dim) as one padded tensor for each group of documents.

    The gradient of padding is exactly zero: no result of it is used, and it comes after its
    document, where causal attention does not see it. So gradients are put together from the real
    rows, where PyTorch would add up whole tensors.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, ...]:
        ctx.layout, ctx.rest = layout, x.shape[1] - sum(layout.lengths)
        return tuple(x.index_select(1, group.gather) for group in layout.groups)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        parts = _real_rows(grads, ctx.layout)
        if ctx.rest:
            shape = (parts[0].shape[0], ctx.rest, parts[0].shape[2])
            parts.append(parts[0].new_zeros(shape))
        return torch.cat(parts, dim=1), None


class _Joined(torch.autograd.Function):
    """Padded tensors, one for each group, side by side again without padding."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, *parts: torch.Tensor) -> torch.Tensor:
        ctx.layout = layout
        return torch.cat(_real_rows(parts, layout), dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        padded, start = [], 0
        for group in ctx.layout.groups:
            length = group.gather.numel() if group.valid is None else group.valid.numel()
            part = grads[0][:, start : start + length]
            start += length
            if group.valid is not None:
                shape = (part.shape[0], group.gather.numel(), part.shape[2])
                part = part.new_zeros(shape).index_copy_(1, group.valid, part)
            padded.append(part)
        return None, *padded


def _real_rows(parts: Sequence[torch.Tensor], layout: Layout) -> list[torch.Tensor]:
    """Return padded tensors of groups, (heads, documents * longest, head_dim), without padding."""
    pairs = zip(parts, layout.groups, strict=True)
    return [p if g.valid is None else p.index_select(1, g.valid) for p, g in pairs]


AttentionInterface.register(NAME, document_attention)


@contextmanager
def documents_apart(model: PreTrainedModel) -> Iterator[None]:
    """Make a model use `document_attention` for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def compared(model: PreTrainedModel) -> Iterator[list[float]]:
    """Run a model's own attention for a while, and record how much `document_attention` differs.

    Both are computed in fp64 from each layer's own inputs. So a difference shows whatever the
    model's precision and the device's kernels: a soft cap, a bias, a mask within documents. The
    mask between documents is not compared; isolation is proven before each run (`isolation.py`).
    The variable-length kernel, which has no fp64, is tried for each kind of layer meanwhile.
    """
    own, before = ALL_ATTENTION_FUNCTIONS["sdpa"], model.config._attn_implementation
    differences: list[float] = []

    def both(module: Any, *inputs: Any, layout: Layout | None = None, **options: Any) -> Any:
        with torch.autocast(inputs[0].device.type, enabled=False):
            differences.append(_difference(own, module, inputs, layout, options))
        try_varlen(inputs[0], inputs[1])
        return own(module, *inputs, **options)

    AttentionInterface.register(COMPARED, both)
    AttentionMaskInterface.register(COMPARED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(COMPARED)
    try:
        yield differences
    finally:
        model.set_attn_implementation(before)


def _difference(
    own: Callable[..., Any],
    module: Any,
    inputs: Any,
    layout: Layout | None,
    options: dict[str, Any],
) -> float:
    """Return the largest difference from a layer's own attention, relative to the largest value."""
    if layout is None:
        raise ValueError("The pack has no layout.")
    exact = torch.float32 if inputs[0].device.type in WITHOUT_FP64 else torch.float64
    query, key, value = (each.to(exact) for each in inputs[:3])
    mask = inputs[3]
    ours, _ = document_attention(module, query, key, value, None, layout=layout, **options)
    start, theirs = 0, []
    for length in layout.lengths:
        part = slice(start, start + length)
        within = None if mask is None else mask[..., part, part]
        if within is not None and within.is_floating_point():
            within = within.to(exact)
        theirs.append(
            own(module, query[:, :, part], key[:, :, part], value[:, :, part], within, **options)[0]
        )
        start += length
    return _apart(ours[:, :start], torch.cat(theirs, dim=1))


def in_use(model: torch.nn.Module) -> bool:
    """Tell whether a model, wrapped or not, uses `document_attention` now and needs a layout."""
    inner = getattr(model, "module", model)  # what DistributedDataParallel wraps
    return getattr(inner.config, "_attn_implementation", "") in (NAME, COMPARED)


def could_use(model: PreTrainedModel) -> bool:
    """Tell whether a model's attention is plain causal attention, so that it can be replaced.

    Models with sliding windows, soft caps or sinks keep their own attention.
    """
    config = model.config
    special = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size", "layer_types")
    if any(_is_set(getattr(config, name, None)) for name in special):
        return False
    replaceable = bool(getattr(model, "_supports_attention_backend", False))
    return replaceable and config._attn_implementation in ("sdpa", NAME)


def _is_set(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(kind != "full_attention" for kind in value)
    return bool(value)
