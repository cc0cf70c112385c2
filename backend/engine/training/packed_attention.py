"""Attention in which each document of a pack attends only to itself.

Transformers isolates packed documents with one mask over the whole pack: it computes the attention
between documents and then discards it. Here documents of similar length are gathered into a batch,
computed with causal attention, and put side by side again: the same numbers for less work. Padding
inside such a batch comes after each document, where causal attention does not see it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

NAME, COMPARED = "workbench_documents", "workbench_compared"
# A batch may waste this share of its longest document on a shorter one before it is split.
SHORTEST_SHARE = 0.7
AGREES = 1e-5
"""How much `document_attention` in fp32 may differ from a model's own attention."""


@dataclass(frozen=True)
class Group:
    """Documents computed in one batch. `gather`, (documents * longest,) int64, fetches them padded
    from the pack; `valid` picks the real rows afterwards."""

    documents: int
    longest: int
    gather: torch.Tensor
    valid: torch.Tensor | None


@dataclass(frozen=True)
class Layout:
    """Where the documents of a pack are. Not a tensor, so the model passes it on unchanged."""

    groups: tuple[Group, ...]
    lengths: tuple[int, ...]
    """The documents' lengths in tokens, in their order in the pack."""

    @classmethod
    def of(cls, lengths: list[int]) -> "Layout":
        """Plan the groups for documents side by side, the longest first; `lengths` in tokens."""
        groups: list[Group] = []
        start = begin = 0
        for index in range(len(lengths)):
            last = index + 1 == len(lengths)
            if last or lengths[index + 1] < SHORTEST_SHARE * lengths[begin]:
                members = lengths[begin : index + 1]
                groups.append(_group(members, start))
                start, begin = start + sum(members), index + 1
        return cls(tuple(groups), tuple(lengths))

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Layout":
        """Return the layout with its indices on a device, as `Tensor.to` does."""
        moved = tuple(
            Group(
                g.documents,
                g.longest,
                g.gather.to(device, non_blocking=non_blocking),
                None if g.valid is None else g.valid.to(device, non_blocking=non_blocking),
            )
            for g in self.groups
        )
        return Layout(moved, self.lengths)


def _group(lengths: list[int], start: int) -> Group:
    longest = lengths[0]
    column = torch.arange(longest)
    sizes = torch.tensor(lengths)[:, None]
    starts = start + torch.cumsum(sizes, 0) - sizes
    gather = (starts + torch.minimum(column, sizes - 1)).reshape(-1)
    inside = (column < sizes).reshape(-1)
    valid = None if bool(inside.all()) else torch.nonzero(inside).reshape(-1)
    return Group(len(lengths), longest, gather, valid)


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
    repeat = query.shape[1] // key.shape[1]
    with _in_full_precision(query.device):
        inputs = (each[0].float() if each.is_cpu else each[0] for each in (query, key, value))
        q, k, v = inputs
        parts = [_attend(q, k, v, group, repeat, scaling, dropout) for group in layout.groups]
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


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: Group,
    repeat: int,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Attend within one group; heads are in the batch dimension, documents in that of heads."""
    shape = (group.documents, group.longest)
    q = query.index_select(1, group.gather).unflatten(1, shape)
    k = key.index_select(1, group.gather).unflatten(1, shape)
    v = value.index_select(1, group.gather).unflatten(1, shape)
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout)
    out = out.flatten(1, 2)
    return out if group.valid is None else out.index_select(1, group.valid)


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

    Both are computed in fp32 from each layer's own inputs. So a difference shows whatever the
    model's precision: a soft cap, a bias, a mask within documents. The mask between documents is
    not compared; isolation is proven before each run (`isolation.py`).
    """
    own, before = ALL_ATTENTION_FUNCTIONS["sdpa"], model.config._attn_implementation
    differences: list[float] = []

    def both(module: Any, *inputs: Any, layout: Layout | None = None, **options: Any) -> Any:
        with _in_full_precision(inputs[0].device):
            differences.append(_difference(own, module, inputs, layout, options))
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
    query, key, value = (each.float() for each in inputs[:3])
    mask = inputs[3]
    ours, _ = document_attention(module, query, key, value, None, layout=layout, **options)
    start, theirs = 0, []
    for length in layout.lengths:
        part = slice(start, start + length)
        within = None if mask is None else mask[..., part, part]
        if within is not None and within.is_floating_point():
            within = within.float()
        theirs.append(
            own(module, query[:, :, part], key[:, :, part], value[:, :, part], within, **options)[0]
        )
        start += length
    expected = torch.cat(theirs, dim=1)
    return float((ours[:, :start] - expected).abs().max() / expected.abs().max())


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
