"""Proof of the slot's content: its tensors are compared bit for bit.

Outputs cannot prove it in bf16: two different adapters may differ by less than bf16 rounding, and a
weak adapter always does. So the layers' tensors are compared with the adapter's own file. Compiled
code has to use the slot's tensors: that is shown with random adapters whose effect is far larger
than any rounding.
"""

from pathlib import Path

import torch

from backend.engine.hotswap import reference_outputs
from backend.engine.hotswap.slot_layers import Block, Part, SlotLayer, SlotMemory
from backend.engine.methods import file_validation
from backend.engine.models.linear_layers import Target
from backend.engine.models.loading import Base
from backend.errors import VerificationFailed

FOLLOWS = 0.1
"""How much compiled outputs may differ from plain ones, relative to the adapter's effect."""
PROBES = 2
CURE = "The swap was undone. Leave the slot and prepare it again."


def read_file(folder: Path, memory: SlotMemory, *, name: str) -> dict[str, Part]:
    """Read an adapter's change of each layer from its own file, without PEFT."""
    layers = [Target(layer, *shape) for layer, shape in memory.shapes.items()]
    scanned = file_validation.scan(folder, layers, name=name)
    return {
        fit.layer: Part(
            scanned.tensors[fit.key("lora_A.weight")],
            scanned.tensors[fit.key("lora_B.weight")],
            fit.scaling,
        )
        for fit in scanned.fits
    }


def require_holds(
    model: torch.nn.Module, memory: SlotMemory, parts: dict[str, Part], *, name: str
) -> None:
    """Raise VerificationFailed where a layer uses other tensors than these (padded)."""
    wrong = sorted(parts.keys() - memory.shapes.keys())
    for layer in memory.shapes:
        module = model.get_submodule(layer)
        if not isinstance(module, SlotLayer) or not _holds(module, parts.get(layer)):
            wrong.append(layer)
    if wrong:
        raise VerificationFailed(
            f"{name or 'The base'} was swapped in, but {wrong[0]} does not use it.",
            cure=CURE,
        )


def require_out(model: torch.nn.Module, originals: dict[str, torch.nn.Module]) -> None:
    """Raise VerificationFailed where the original layers are not all back."""
    back = all(model.get_submodule(name) is original for name, original in originals.items())
    if not back or any(isinstance(module, SlotLayer) for module in model.modules()):
        raise VerificationFailed(
            "The slot was left, but part of it is still on the model.",
            cure="Load the base again.",
        )


def require_compiled_follows(base: Base, memory: SlotMemory, current: Block) -> None:
    """Raise VerificationFailed where compiled outputs do not follow the tensors in the slot.

    Random adapters with an effect far larger than rounding are put in; then `current` is restored.
    """
    try:
        memory.put(memory.pack({}))
        alone = _answers(base, compiled=False)
        for seed in range(PROBES):
            memory.put(_strong(memory, seed))
            plain, compiled = (_answers(base, compiled=each) for each in (False, True))
            effect = float((plain - alone).norm())
            off = float((compiled - plain).norm())
            if not off <= FOLLOWS * effect:
                raise VerificationFailed(
                    f"Compiled answers do not follow the adapter in the slot: they differ by "
                    f"{off:.2g} from plain ones, where the adapter's effect is {effect:.2g}.",
                    cure="Prepare the slot without compiling.",
                )
    finally:
        memory.put(current)


def _holds(module: SlotLayer, part: Part | None) -> bool:
    if part is None:
        return not any(bool(each.any()) for each in (module.down, module.up, module.scaling))
    rank = part.down.shape[0]
    scaling = torch.tensor(part.scaling).to(module.scaling)
    return (
        torch.equal(module.down[:rank], part.down.to(module.down))
        and torch.equal(module.up[:, :rank], part.up.to(module.up))
        and torch.equal(module.scaling, scaling)
        and not bool(module.down[rank:].any())
        and not bool(module.up[:, rank:].any())
    )


def _strong(memory: SlotMemory, seed: int) -> Block:
    """Return a random adapter whose change of each layer's output is about as large as it."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, (inputs, outputs) in memory.shapes.items():
        down = torch.randn(memory.rank, inputs, generator=generator) / inputs**0.5
        up = torch.randn(outputs, memory.rank, generator=generator) / memory.rank**0.5
        parts[name] = Part(down, up, 1.0)
    return memory.pack(parts)


def _answers(base: Base, *, compiled: bool) -> torch.Tensor:
    """Return the log-probabilities of forced tokens, (tokens,), as `generate` computes them."""
    call = base.model._compiled_call_impl
    if not compiled:
        base.model._compiled_call_impl = None
    try:
        return torch.tensor(reference_outputs.dictated(base.model, base))
    finally:
        base.model._compiled_call_impl = call
