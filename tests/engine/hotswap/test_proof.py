"""A wrong adapter in the slot is caught in every precision, however weak it is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backend import Service
from backend import requests as rq
from backend.engine.hotswap import compiling, slot_proof
from backend.engine.hotswap.slot import BASE, Slot
from backend.engine.hotswap.slot_layers import SlotLayer
from backend.errors import VerificationFailed
from tests.engine.hotswap.conftest import start
from tests.engine.tiny import enlist, lora, start_service, write_base


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def service(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two strong adapters, and two that hardly change an answer, on a base in a precision."""
    base = write_base(tmp_path_factory.mktemp("base"))
    with start_service(tmp_path_factory.mktemp("workspace"), base) as found:
        loading = rq.LoadModel(source=str(base), precision=request.param)
        found.start(loading).result(timeout=120)
        for seed, name in enumerate(("strong", "other")):
            enlist(found, name, lora(r=4), seed=seed)
        for seed, name in enumerate(("weak", "weaker")):
            enlist(found, name, lora(r=4, lora_alpha=1e-5), seed=10 + seed)
        yield found


@pytest.fixture
def slot(service: Service) -> Iterator[Slot]:
    names = ["strong", "other", "weak", "weaker"]
    start(service, rq.PrepareHotswap(adapters=names, compile=False))
    yield service.engine._runtime._engine.session.slot  # type: ignore[union-attr]
    start(service, rq.EndHotswap())


PAIRS = [("strong", "other"), ("weak", "weaker"), ("weak", BASE), (BASE, "weak")]


@pytest.mark.parametrize(("name", "wrong"), PAIRS)
def test_another_adapter_in_its_place_is_caught(
    service: Service, slot: Slot, name: str, wrong: str
) -> None:
    start(service, rq.Hotswap(adapter="other"))
    entry = slot._entries[name]
    slot._entries[name] = entry._replace(block=slot._entries[wrong].block)

    with pytest.raises(VerificationFailed, match=r"does not use it\. The swap was undone"):
        start(service, rq.Hotswap(adapter=name))

    assert service.snapshot().slot.current == "other"
    slot._entries[name] = entry
    assert start(service, rq.Hotswap(adapter=name)).adapter == name


@pytest.mark.parametrize("part", ["weights", "scalings"])
def test_one_number_that_is_off_by_one_bit_is_caught(
    service: Service, slot: Slot, part: str
) -> None:
    tensor = getattr(slot._entries["weak"].block, part)
    before = tensor[0].clone()
    tensor[0] = torch.nextafter(before, torch.tensor(torch.inf))

    with pytest.raises(VerificationFailed, match="does not use it"):
        start(service, rq.Hotswap(adapter="weak"))

    tensor[0] = before
    start(service, rq.Hotswap(adapter="weak"))


def test_a_layer_that_is_not_the_slots_is_caught(service: Service, slot: Slot) -> None:
    model = slot.base.model
    module = next(part for part in model.modules() if isinstance(part, SlotLayer))
    live, module.up = module.up, module.up.clone()

    with pytest.raises(VerificationFailed, match="does not use it"):
        start(service, rq.Hotswap(adapter="weak"))

    module.up = live


def test_an_original_that_does_not_come_back_is_caught(
    service: Service, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = slot.memory.remove

    def forgetting(model: torch.nn.Module) -> None:
        name, original = next(iter(slot.memory.originals.items()))
        left = model.get_submodule(name)
        remove(model)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, left)
        forgotten.append((parent, child, original))

    forgotten: list[tuple[str, str, torch.nn.Module]] = []
    with monkeypatch.context() as patch:
        patch.setattr(slot.memory, "remove", forgetting)
        with pytest.raises(VerificationFailed, match="still on the model"):
            start(service, rq.EndHotswap())
    for parent, child, original in forgotten:
        setattr(slot.base.model.get_submodule(parent), child, original)
    start(service, rq.PrepareHotswap(adapters=["strong"], compile=False))


@pytest.mark.parametrize("stale", [True, False])
def test_compiled_code_that_does_not_follow_the_slot_is_not_used(
    service: Service, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    """A compiler that keeps the tensors of its first call would answer like one adapter always."""
    first: list[torch.Tensor] = []
    count = [0]

    def compile_(call: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        layers = [m for m in call.__self__.modules() if isinstance(m, SlotLayer)]  # type: ignore[attr-defined]

        def run(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            live = [layer.up for layer in layers]
            if not first:
                first.extend(tensor.clone() for tensor in live)
            for layer, tensor in zip(layers, first if stale else live, strict=True):
                layer.up = tensor
            try:
                return call(*arguments, **named)
            finally:
                for layer, tensor in zip(layers, live, strict=True):
                    layer.up = tensor

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(compiling, "obstacle", lambda device: "")
    monkeypatch.setattr(compiling, "graphs", lambda: min(count[0], 1))

    prepared = start(service, rq.PrepareHotswap(adapters=["strong", "weak"]))

    assert prepared.compiled is not stale
    assert any("do not follow the adapter" in note for note in prepared.notes) is stale
    start(service, rq.Hotswap(adapter="weak"))
    start(service, rq.EndHotswap())


def test_a_file_is_read_without_what_peft_made_of_it(service: Service, slot: Slot) -> None:
    info = service.library.get("weak")
    folder: Path = service.library.folder(info.id)

    parts = slot_proof.read_file(folder, slot.memory, name="weak")

    assert parts.keys() == slot.memory.shapes.keys()
    assert all(part.scaling == 1e-5 / 4 for part in parts.values())
