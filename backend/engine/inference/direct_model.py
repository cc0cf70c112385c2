"""A decoder computed from its weights, without the Python of its modules and of PEFT's wrappers.

Modules, masks and caches took a third of the time between two tokens of an answer. Here a model
with the parts of a Llama (RMS norms, rotary positions, grouped attention, a gated MLP) is computed
from those parts. Whether that is right for a model is found by trying (`ways`), not by its name.
Rows have caches of their own. Knows nothing of sampling or of conversations.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention

from backend.engine.inference.row_cache import RowCache
from backend.engine.models.loading import Base

STATIC_ROTARY = {"default", "linear", "llama3", "yarn"}
"""Rotary positions whose frequencies do not depend on the length of the text."""

FEW = 16
"""Rows up to which a product of a few rows is computed in another way than one of many."""

Change = tuple[torch.Tensor, torch.Tensor, float]
"""What an adapter adds to a linear layer: down (rank, in), up (out, rank), and its scaling."""

Changes = Mapping[int, Sequence[Change]]
"""The changes of one row, by the number of the linear layer."""


_Part = tuple[int, int, Changes]
"""The first row of a segment, the row after its last one, and what its adapters add."""


@dataclass
class Segment:
    """New tokens of one row: its cache, what its adapters add, and the tokens' ids."""

    cache: RowCache
    changes: Changes
    tokens: list[int]


class NotDirect(Exception):
    """The model has other parts than those that are computed here."""


@dataclass(frozen=True)
class _Linear:
    """One linear layer of the base; `module` computes it where it is quantised."""

    number: int
    wrapper: nn.Module
    """What stands in the model: PEFT's layer, or the base's own."""

    module: nn.Module
    weight: torch.Tensor | None
    bias: torch.Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        """The layer's outputs and inputs."""
        module: Any = self.module
        return int(module.out_features), int(module.in_features)

    def base(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the base's part; x: (rows, in). Returns (rows, out)."""
        if self.weight is None:
            found: torch.Tensor = self.module(x)
            return found
        if len(x) == 1:
            y = torch.mv(self.weight, x[0])[None]
            return y if self.bias is None else y.add_(self.bias)
        if len(x) > FEW or self.weight.dtype == torch.float32:
            return linear(x, self.weight, self.bias)
        # In half precision on a processor, oneDNN (PyTorch 2.13) brings the second factor into its
        # own order first. So that is the few rows here, and never the weight.
        y = torch.mm(self.weight, x.t()).t().contiguous()
        return y if self.bias is None else y.add_(self.bias)


@dataclass(frozen=True)
class _Norm:
    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class _Layer:
    before: _Norm
    q: _Linear
    k: _Linear
    v: _Linear
    q_norm: _Norm | None
    k_norm: _Norm | None
    o: _Linear
    after: _Norm
    gate: _Linear
    up: _Linear
    down: _Linear
    act: Callable[[torch.Tensor], torch.Tensor]


@dataclass
class DirectModel:
    """The parts of a base. Raises NotDirect where one is missing or of another kind."""

    base: Base
    linears: list[_Linear] = field(default_factory=list)

    def __post_init__(self) -> None:
        model, config = self.base.model, self.base.model.config
        _require(model, {"model", "lm_head"})
        decoder: Any = model.model
        _require(decoder, {"embed_tokens", "layers", "norm", "rotary_emb"})
        if getattr(decoder.rotary_emb, "rope_type", None) not in STATIC_ROTARY:
            raise NotDirect("rotary positions")
        self._rotary = decoder.rotary_emb
        self._embedding = _unwrapped(decoder.embed_tokens).weight
        self._layers = [self._layer(each) for each in decoder.layers]
        self._norm = _norm(decoder.norm)
        self._head = self._linear(model.lm_head)
        attention = decoder.layers[0].self_attn
        self._head_dim, self._scaling = int(attention.head_dim), float(attention.scaling)
        self._key_heads = int(config.num_key_value_heads)
        self._heads = int(config.num_attention_heads)
        kinds = set(getattr(config, "layer_types", None) or ())
        if not kinds <= {"full_attention", "sliding_attention"}:
            raise NotDirect("attention")
        windows = (
            getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")
        )
        self.longest: int | None = min((each for each in windows if each), default=None)
        """Tokens up to which all attention is full attention; None without a limit."""

    def _layer(self, layer: Any) -> _Layer:
        _require(layer, {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"})
        attention, mlp = layer.self_attn, layer.mlp
        _require(attention, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"})
        _require(mlp, {"gate_proj", "up_proj", "down_proj", "act_fn"})
        q_norm, k_norm = (attention._modules.get(name) for name in ("q_norm", "k_norm"))
        return _Layer(
            before=_norm(layer.input_layernorm),
            q=self._linear(attention.q_proj),
            k=self._linear(attention.k_proj),
            v=self._linear(attention.v_proj),
            q_norm=None if q_norm is None else _norm(q_norm),
            k_norm=None if k_norm is None else _norm(k_norm),
            o=self._linear(attention.o_proj),
            after=_norm(layer.post_attention_layernorm),
            gate=self._linear(mlp.gate_proj),
            up=self._linear(mlp.up_proj),
            down=self._linear(mlp.down_proj),
            act=mlp.act_fn,
        )

    def _linear(self, wrapper: nn.Module) -> _Linear:
        module = _unwrapped(wrapper)
        plain = type(module) is nn.Linear
        weight: Any = module.weight if plain else None
        bias: Any = module.bias if plain else None
        if weight is not None and weight.device != self._embedding.device:
            raise NotDirect("several devices")
        found = _Linear(len(self.linears), wrapper, module, weight, bias)
        self.linears.append(found)
        return found

    def cache(self, room: int) -> RowCache:
        """Return an empty cache for a row of so many tokens."""
        shape = (len(self._layers), self._key_heads, self._head_dim)
        return RowCache(shape, self.base.dtype, self._embedding.device, room)

    def changes(self, ids: Sequence[str]) -> Changes:
        """Return what adapters change, with the scalings that they have now."""
        found: dict[int, list[Change]] = {}
        for each in self.linears:
            if isinstance(each.wrapper, LoraLayer):
                for id in (id for id in ids if id in each.wrapper.lora_A):
                    down, up = each.wrapper.lora_A[id].weight, each.wrapper.lora_B[id].weight
                    found.setdefault(each.number, []).append((down, up, each.wrapper.scaling[id]))
        return found

    def least_rows(self) -> int:
        """Return the number of rows that a smaller batch is filled up to.

        In half precision a batch then computes each row as it is computed alone: on a processor two
        rows and more go the same way, and on a GPU, where libraries choose the way by the number of
        rows, all batches have the same number.
        """
        if self.base.dtype == torch.float32:
            return 1
        return 2 if self._embedding.device.type == "cpu" else FEW

    def scores(self, segments: Sequence[Segment]) -> torch.Tensor:
        """Return the scores after each segment's last token, (segments, vocabulary), float32.

        Each cache then holds its segment's tokens. Either there is one segment, or each has one
        token.
        """
        x, cos, turn = self._inputs(segments)
        parts = _parts(segments, [len(each.tokens) for each in segments])
        for number, layer in enumerate(self._layers):
            x = x + self._attention(number, layer.before(x), segments, parts, cos, turn)
            x = x + self._mlp(layer, layer.after(x), parts)
        for each in segments:
            each.cache.extend(each.tokens)
        if len(segments) == 1:
            last = x[len(segments[0].tokens) - 1]
            x = last.expand(self.least_rows(), -1).contiguous()
        scores = _apply(self._head, self._norm(x), _parts(segments, [1] * len(segments)))
        return scores[: len(segments)].float()

    def _inputs(
        self, segments: Sequence[Segment]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return embeddings, (rows, width), with the cosines and signed sines of their positions.

        The last token is repeated up to the least number of rows.
        """
        ids: list[int] = []
        places: list[int] = []
        for each in segments:
            each.cache.reserve(len(each.tokens))
            ids.extend(each.tokens)
            places.extend(range(len(each.cache), len(each.cache) + len(each.tokens)))
        fill, device = max(self.least_rows() - len(ids), 0), self._embedding.device
        given = torch.tensor([ids + ids[-1:] * fill, places + places[-1:] * fill], device=device)
        x = embedding(given[0], self._embedding)
        cos, sin = (each[0, :, None] for each in self._rotary(x[None], given[1:]))
        return x, cos, _signed(sin)

    def _attention(
        self,
        number: int,
        x: torch.Tensor,
        segments: Sequence[Segment],
        parts: Sequence[_Part],
        cos: torch.Tensor,
        turn: torch.Tensor,
    ) -> torch.Tensor:
        layer, rows = self._layers[number], len(x)
        q = _apply(layer.q, x, parts).view(rows, self._heads, self._head_dim)
        k = _apply(layer.k, x, parts).view(rows, self._key_heads, self._head_dim)
        v = _apply(layer.v, x, parts).view(rows, self._key_heads, self._head_dim)
        q = q if layer.q_norm is None else layer.q_norm(q)
        k = k if layer.k_norm is None else layer.k_norm(k)
        q, k = _turned(torch.cat([q, k], 1), cos, turn).split([self._heads, self._key_heads], 1)
        found, start = [], 0
        for each in segments:
            end = start + len(each.tokens)
            keys, values = each.cache.put(number, k[start:end], v[start:end])
            found.append(self._attend(q[start:end], keys, values))
            start = end
        if start < rows:
            found.append(found[-1][-1:].expand(rows - start, -1))
        return _apply(layer.o, found[0] if len(found) == 1 else torch.cat(found), parts)

    def _attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return (tokens, heads * head_dim); q: (tokens, heads, head_dim)."""
        count, past = len(q), keys.shape[1] - len(q)
        if count == 1:  # the heads that share keys are queries of one head: nothing is copied
            grouped = q.reshape(1, self._key_heads, -1, self._head_dim)
            out = scaled_dot_product_attention(
                grouped, keys[None], values[None], scale=self._scaling
            )
            return out.reshape(1, -1)
        mask = None
        if past:
            mask = torch.ones(count, count + past, dtype=torch.bool, device=q.device).tril(past)
        shared = self._heads // self._key_heads
        out = scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys.repeat_interleave(shared, 0)[None],
            values.repeat_interleave(shared, 0)[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scaling,
        )
        return out[0].transpose(0, 1).reshape(count, -1)

    def _mlp(self, layer: _Layer, x: torch.Tensor, parts: Sequence[_Part]) -> torch.Tensor:
        gated = layer.act(_apply(layer.gate, x, parts))
        return _apply(layer.down, gated * _apply(layer.up, x, parts), parts)


def _parts(segments: Sequence[Segment], rows: Sequence[int]) -> list[_Part]:
    """Return the rows of those segments that have adapters; rows: how many each segment has."""
    ends = accumulate(rows)
    found = zip(segments, rows, ends, strict=True)
    return [(end - count, end, each.changes) for each, count, end in found if each.changes]


def _apply(layer: _Linear, x: torch.Tensor, parts: Sequence[_Part]) -> torch.Tensor:
    """Compute a linear layer, and add to each row what its own adapters add.

    Row by row, as if it were alone: a product of all rows would round in another way.
    """
    out = layer.base(x)
    for start, end, changes in parts:
        for down, up, scaling in changes.get(layer.number, ()):
            _add(out[start:end], x[start:end], down, up, scaling)
    return out


def _add(
    out: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scaling: float
) -> None:
    """Add an adapter's part in place, as PEFT's `lora.Linear`; out, x: (tokens, out or in)."""
    x = x.to(down.dtype)
    if out.dtype != up.dtype:
        out.add_(linear(linear(x, down), up), alpha=scaling)
    elif len(x) == 1:
        out[0].addmv_(up, torch.mv(down, x[0]), alpha=scaling)
    else:
        out.addmm_(linear(x, down), up.t(), alpha=scaling)


def _signed(sin: torch.Tensor) -> torch.Tensor:
    """Return the sines with the first half negative: see `_turned`."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def _turned(x: torch.Tensor, cos: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions (Su et al. 2021); x: (tokens, heads, head_dim)."""
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, x.roll(half, -1), turn)


def _norm(module: Any) -> _Norm:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if set(module._parameters) != {"weight"} or eps is None:
        raise NotDirect(type(module).__name__)
    return _Norm(module.weight, float(eps))


def _unwrapped(module: Any) -> Any:
    """Return the base's own module, whatever PEFT has put around it."""
    while True:
        if isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        elif isinstance(inner := getattr(module, "base_layer", None), nn.Module):
            module = inner
        else:
            return module


def _require(module: nn.Module, names: Set[str], optional: Set[str] = frozenset()) -> None:
    """Raise NotDirect where a module has other children than these."""
    there = set(module._modules)
    if not names <= there <= names | optional or module._parameters:
        raise NotDirect(type(module).__name__)
