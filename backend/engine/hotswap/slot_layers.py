"""The slot's layers: low-rank changes of one size in one block of memory.

PEFT's own hot-swap writes into a live adapter and leaves its configuration, patterns and names
wrong (0.21.2). So there is no PEFT layer on the model while a slot is: each adapted layer is
replaced by a `SlotLayer` around the base's own layer, and the same objects are put back afterwards.
A swap copies one prepared block over another. Knows nothing of the library.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import functional

from backend.engine.models.linear_layers import base_layer
from backend.errors import Unsupported

ALIGNMENT_BYTES = 64  # compiled code may rely on aligned inputs


class Part(NamedTuple):
    """An adapter's change of one layer: scaling * up @ down; (rank, inputs), (outputs, rank)."""

    down: torch.Tensor
    up: torch.Tensor
    scaling: float


class Block(NamedTuple):
    """A whole adapter, padded to the slot's rank, as it is copied into the slot."""

    weights: torch.Tensor
    scalings: torch.Tensor


class SlotLayer(torch.nn.Module):
    """A layer of the base, plus its low-rank change from the slot.

    Computes as PEFT's LoRA layer, in the adapter's own dtype. down: (rank, inputs); up: (outputs,
    rank); scaling: (), a tensor, because a Python number would be compiled in as a constant.
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: torch.Tensor

    def __init__(
        self,
        base_layer: torch.nn.Module,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: torch.Tensor,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)
        self.register_buffer("scaling", scaling, persistent=False)

    def get_base_layer(self) -> torch.nn.Module:
        return self.base_layer

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight: some models compute with it directly, as PEFT's layer allows."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> torch.Tensor | None:
        """The base layer's bias, likewise."""
        return self.base_layer.bias  # type: ignore[return-value]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs, (..., inputs), to (..., outputs), in the base layer's output dtype."""
        result: torch.Tensor = self.base_layer(inputs)
        inner = functional.linear(inputs.to(self.down.dtype), self.down)
        change = functional.linear(inner, self.up) * self.scaling
        return (result + change).to(result.dtype)


class SlotMemory:
    """The slot's tensors, laid out in one block, and the layers that compute with them."""

    def __init__(
        self, shapes: dict[str, tuple[int, int]], *, rank: int, like: torch.Tensor
    ) -> None:
        """`shapes`: each layer's (inputs, outputs); dtype and device are those of `like`."""
        self.rank = rank
        self.shapes = shapes
        self._step = max(ALIGNMENT_BYTES // like.element_size(), 1)
        total = sum(self._padded(rank * size) for pair in shapes.values() for size in pair)
        self.live = Block(
            torch.zeros(total, dtype=like.dtype, device=like.device),
            torch.zeros(len(shapes), dtype=torch.float32, device=like.device),
        )
        self._originals: dict[str, torch.nn.Module] = {}

    @property
    def originals(self) -> dict[str, torch.nn.Module]:
        """The layers that the slot's layers replace."""
        return dict(self._originals)

    @property
    def bytes(self) -> int:
        """The bytes of one adapter in the slot's layout."""
        return sum(each.numel() * each.element_size() for each in self.live)

    def pack(self, parts: dict[str, Part]) -> Block:
        """Arrange an adapter in the slot's layout, padded with zeros; missing layers are zero."""
        block = Block(torch.zeros_like(self.live.weights), torch.zeros_like(self.live.scalings))
        for index, (name, down, up) in enumerate(self._views(block.weights)):
            part = parts.get(name)
            if part is None:
                continue
            rank = part.down.shape[0]
            down[:rank].copy_(part.down)
            up[:, :rank].copy_(part.up)
            block.scalings[index] = part.scaling
        return block

    def put(self, block: Block, strength: float = 1.0) -> None:
        """Copy a prepared adapter into the slot, in place: compiled code keeps the same tensors."""
        with torch.no_grad():
            self.live.weights.copy_(block.weights)
            self.live.scalings.copy_(block.scalings)
            if strength != 1.0:
                self.live.scalings.mul_(strength)

    def install(self, model: torch.nn.Module) -> None:
        """Put the slot's layers into the model; all its adapters are inactive meanwhile."""
        views = {name: (down, up) for name, down, up in self._views(self.live.weights)}
        numbers = {name: index for index, name in enumerate(views)}
        for name in self._affected(model):
            original = model.get_submodule(name)
            base = base_layer(original)
            layer = base
            if name in views:
                layer = SlotLayer(base, *views[name], self.live.scalings[numbers[name]]).eval()
            self._originals[name] = original
            _replace(model, name, layer)

    def remove(self, model: torch.nn.Module) -> None:
        """Put back the original layers, the same objects."""
        while self._originals:
            name, original = self._originals.popitem()
            _replace(model, name, original)

    def _affected(self, model: torch.nn.Module) -> list[str]:
        adapted = [
            name
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer) and ".base_layer" not in name
        ]
        return list(dict.fromkeys([*self.shapes, *adapted]))

    def _padded(self, size: int) -> int:
        return -(-size // self._step) * self._step

    def _views(self, flat: torch.Tensor) -> Iterable[tuple[str, torch.Tensor, torch.Tensor]]:
        start = 0
        for name, (inputs, outputs) in self.shapes.items():
            down = flat[start : start + self.rank * inputs].view(self.rank, inputs)
            start += self._padded(self.rank * inputs)
            up = flat[start : start + self.rank * outputs].view(outputs, self.rank)
            start += self._padded(self.rank * outputs)
            yield name, down, up


def read_parts(model: torch.nn.Module, adapter_id: str) -> dict[str, Part]:
    """Read an adapter that PEFT has loaded, layer by layer, with PEFT's own scaling of each.

    So rank and alpha patterns and rsLoRA are correct. Raises Unsupported where the adapter is more
    than a low-rank change.
    """
    parts = {}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or adapter_id not in module.scaling:
            continue
        _require_plain(module, name, adapter_id)
        down, up = module.lora_A[adapter_id].weight, module.lora_B[adapter_id].weight
        scaling = float(module.scaling[adapter_id])
        parts[name] = Part(down.detach().clone(), up.detach().clone(), scaling)
    return parts


def _require_plain(module: LoraLayer, name: str, adapter_id: str) -> None:
    plain = (
        adapter_id in module.lora_A
        and adapter_id not in module.lora_variant
        and getattr(module.lora_B[adapter_id], "bias", None) is None
    )
    if not plain:
        raise Unsupported(
            f"The adapter changes {name} by more than plain LoRA.", cure="Convert it to plain LoRA."
        )


def _replace(model: torch.nn.Module, name: str, layer: torch.nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
