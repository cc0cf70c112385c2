"""Linear layers as training steps need them: fewer passes over memory, the same numbers.

Under autocast PyTorch casts a frozen weight again in each step, and PEFT's LoRA layer casts its
input, scales and adds in passes of their own: on a processor all that takes longer than the matrix
products. Here frozen weights are cast once and kept while steps are made, which takes no more
memory than the casts that a step keeps for its backward pass; layers that share an input share its
cast; and a LoRA layer is one function, whose low-rank products are added inside matrix products.
Layers of other kinds (DoRA, quantised ones, several active adapters) stay as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.nn.functional import dropout, linear

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class LeanLayers:
    """The frozen linear layers of a model while training steps are made; `leave` restores them."""

    def __init__(self, model: torch.nn.Module, *, keeps: bool) -> None:
        """Take over a model's layers; `keeps` is whether cast weights stay from step to step."""
        self._casts = _Casts(keeps)
        self._taken: list[Any] = []
        lora, frozen = _lean_layers(model)
        for layer in lora:
            self._take(layer, _lora_forward(layer, layer.forward, self._casts))
        for layer in frozen:
            self._take(layer, _frozen_forward(layer, self._casts))

    def _take(self, layer: Any, forward: Callable[..., torch.Tensor]) -> None:
        layer.forward = forward
        self._taken.append(layer)

    def free(self) -> None:
        """Free the kept casts, for example those of a precision that was only tried."""
        self._casts.free()

    def leave(self) -> None:
        """Give the layers back, and free the kept casts."""
        for layer in self._taken:
            del layer.forward
        self._taken.clear()
        self.free()


class _Casts:
    """Frozen weights, and the last input, in the precision that is computed in."""

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._kept: dict[torch.nn.Module, torch.Tensor] = {}
        self._input: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def weight(self, layer: Any, dtype: torch.dtype) -> torch.Tensor:
        """Return a layer's weight, (outputs, inputs), in a dtype."""
        weight: torch.Tensor = layer.weight.detach()
        if weight.dtype == dtype:
            return weight
        known = self._kept.get(layer)
        if known is None or known.dtype != dtype:
            known = weight.to(dtype)
            if self._keeps:
                self._kept[layer] = known
        return known

    def input(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return an input in a dtype; layers that follow each other with one input share it."""
        if x.dtype == dtype:
            return x
        if x.is_inference():  # has no version, so a change in place would stay unseen
            return x.to(dtype)
        if self._input is None or self._input[0] is not x or self._input[1] != x._version:
            self._input = (x, x._version, x.to(dtype))
        found = self._input[2]
        wanted = x.requires_grad and torch.is_grad_enabled()
        return found if (found.dtype, found.requires_grad) == (dtype, wanted) else x.to(dtype)

    def free(self) -> None:
        self._kept.clear()
        self._input = None


def _lean_layers(model: torch.nn.Module) -> tuple[list[LoraLinear], list[torch.nn.Module]]:
    """Return the LoRA layers, and the frozen linear layers, that can be computed here."""
    modules = list(model.modules())
    wrappers = [each for each in modules if isinstance(each, BaseTunerLayer)]
    trained = [each for each in modules if isinstance(each, AuxiliaryTrainingWrapper)]
    # Parts of an adapter may be frozen now and change later.
    parts = {part for each in (*wrappers, *trained) for part in each.modules()}
    bases = [part for each in wrappers if _is_plain(part := each.get_base_layer())]
    lora = [
        each
        for each in wrappers
        if type(each) is LoraLinear and each.base_layer in bases and not _is_watched(each)
    ]
    frozen = [each for each in modules if each not in parts and _is_plain(each)]
    return lora, [*bases, *frozen]


def _is_plain(layer: Any) -> bool:
    """Tell whether a layer is PyTorch's own, frozen, and nobody watches its calls."""
    return (
        type(layer) is torch.nn.Linear
        and layer.weight.dtype in FLOATS
        and not any(each.requires_grad for each in layer.parameters())
        and not _is_watched(layer)
    )


def _is_watched(layer: torch.nn.Module) -> bool:
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    return bool(hooks) or "forward" in vars(layer)


def _computed_in(weight: torch.Tensor) -> torch.dtype:
    """Return the dtype that a matrix product with a weight is computed in now."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _frozen_forward(layer: Any, casts: _Casts) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(input: torch.Tensor) -> torch.Tensor:
        dtype = _computed_in(layer.weight)
        if dtype == layer.weight.dtype:
            return linear(input, layer.weight, layer.bias)
        found: torch.Tensor = _Frozen.apply(casts.input(input, dtype), layer, casts, dtype)
        return found

    return forward


def _lora_forward(
    layer: LoraLinear, own: Callable[..., torch.Tensor], casts: _Casts
) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = _only_adapter(layer)
        if name is None or args or kwargs:
            return own(x, *args, **kwargs)
        base: Any = layer.base_layer
        dtype = _computed_in(base.weight)
        x = casts.input(x, dtype)
        chance = layer.lora_dropout[name]
        dropped = dropout(x, chance.p) if layer.training and hasattr(chance, "p") else None
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        found: torch.Tensor = _Adapted.apply(
            x, dropped, down, up, layer.scaling[name], base, casts, dtype
        )
        return found

    return forward


def _only_adapter(layer: LoraLinear) -> str | None:
    """Return the one active adapter of a layer, if it is a plain LoRA; else None."""
    if layer.disable_adapters or layer.merged:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if (
        len(active) != 1
        or active[0] in layer.lora_variant
        or layer.lora_B[active[0]].bias is not None
    ):
        return None
    return active[0]


class _Frozen(torch.autograd.Function):
    """x, (..., inputs), times a frozen weight that is cast and not kept by the graph."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any, casts: _Casts, dtype: torch.dtype) -> Any:
        ctx.weight = lambda: casts.weight(layer, dtype)
        return linear(x, ctx.weight(), _cast(layer.bias, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        weight = ctx.weight()
        return grads[0].to(weight.dtype) @ weight, None, None, None


class _Adapted(torch.autograd.Function):
    """x, (..., inputs), through a frozen layer and one LoRA, whose weights are fp32.

    Returns (..., outputs) in x's dtype: x W' + bias + scale * dropped A' B', with W', A' and B' the
    transposed weights (Hu et al. 2021, section 4.1). `dropped` is x after dropout; None is x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        layer: Any,
        casts: _Casts,
        dtype: torch.dtype,
    ) -> Any:
        source = _flat(x if dropped is None else dropped)
        narrow = linear(source, down.to(dtype))
        found = linear(x, casts.weight(layer, dtype), _cast(layer.bias, dtype))
        _flat(found).addmm_(narrow, up.to(dtype).t(), alpha=scale)
        ctx.save_for_backward(source, narrow, down, up)
        ctx.weight, ctx.scale, ctx.shape = lambda: casts.weight(layer, dtype), scale, x.shape
        ctx.drops = dropped is not None
        return found

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        source, narrow, down, up = ctx.saved_tensors
        grad = _flat(grads[0]).to(source.dtype)
        of_narrow = (grad @ up.to(grad.dtype)).mul_(ctx.scale)
        of_up = (narrow.t() @ grad).t().to(up.dtype).mul_(ctx.scale)
        of_down = (of_narrow.t() @ source).to(down.dtype)
        of_x, of_dropped = None, None
        if ctx.needs_input_grad[0]:
            of_x = grad @ ctx.weight()
            if not ctx.drops:
                of_x.addmm_(of_narrow, down.to(grad.dtype))
            of_x = of_x.view(ctx.shape)
        if ctx.drops and ctx.needs_input_grad[1]:
            of_dropped = (of_narrow @ down.to(grad.dtype)).view(ctx.shape)
        return of_x, of_dropped, of_down, of_up, None, None, None, None


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return (..., width) as (rows, width)."""
    return tensor.reshape(-1, tensor.shape[-1])


def _cast(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.detach().to(dtype)
