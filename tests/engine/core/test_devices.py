"""Devices of every kind, faked: which is chosen, what it can do, and what is refused on it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backend.engine.core import devices, dtypes, memory, process_group
from backend.engine.hotswap import compiling
from backend.engine.models import loading, quantization
from backend.engine.models.model_size import Shape, weight_bytes
from backend.engine.planning import quantization_table
from backend.engine.training import (
    memory_estimate,
    packed_attention,
    precision_choice,
    step_loss,
    trainer_arguments,
)
from backend.errors import Unsupported
from backend.requests import LoadModel, QuantizationTable, Train
from backend.settings import Settings
from tests.engine.models.test_loading import SILENT

GB = 10**9


class FakeGpus:
    """What PyTorch says of GPUs that are not there."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.taken: list[int] = []

    def put(self, kind: str, *, count: int = 1, bf16: bool = True, apple: str = "Apple M3") -> None:
        """Let this machine have GPUs of one kind; `bf16` says whether they compute it."""
        found = torch.device(kind) if kind != "cpu" else None
        set_ = self.patch.setattr
        set_(torch.accelerator, "current_accelerator", lambda check_available=False: found)
        set_(torch.accelerator, "device_count", lambda: count)
        set_(torch.accelerator, "current_device_index", lambda: 0)
        set_(torch.accelerator, "set_device_index", self.taken.append)
        set_(torch.cuda, "is_available", lambda: kind == "cuda")
        set_(torch.cuda, "device_count", lambda: count if kind == "cuda" else 0)
        set_(torch.backends.mps, "get_name", lambda: apple, raising=False)
        set_(torch.backends.mps, "is_macos_or_newer", lambda *_: True)
        for module in (torch.cuda, torch.xpu):

            def supported(including_emulation: bool = True) -> bool:
                return including_emulation or bf16

            set_(module, "is_bf16_supported", supported)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    return FakeGpus(monkeypatch)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_auto_chooses_the_gpu_that_is_there_and_cpu_stays_cpu(gpus: FakeGpus, kind: str) -> None:
    gpus.put(kind)

    assert devices.choose("auto") == devices.choose(kind) == torch.device(kind, 0)
    assert devices.choose("cpu") == torch.device("cpu")


def test_an_accelerator_of_another_kind_is_left_alone(gpus: FakeGpus) -> None:
    gpus.put("hpu")

    assert devices.choose("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("here", "wanted", "sentence"),
    [
        ("cpu", "cuda", "This machine has no NVIDIA GPU that PyTorch can use. Use cpu."),
        ("cpu", "mps", "This machine has no Apple GPU that PyTorch can use. Use cpu."),
        (
            "xpu",
            "cuda",
            "This machine has no NVIDIA GPU that PyTorch can use. "
            "Use xpu (the Intel GPU of this machine) or cpu.",
        ),
    ],
)
def test_a_kind_that_is_not_there_is_refused(
    gpus: FakeGpus, here: str, wanted: str, sentence: str
) -> None:
    gpus.put(here)

    with pytest.raises(Unsupported) as caught:
        devices.choose(wanted)

    assert str(caught.value) == sentence


# -- bf16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "bf16", "apple", "plain", "quantised"),
    [
        ("cuda", True, "", "bf16", "bf16"),
        ("cuda", False, "", "fp16", "fp32"),  # a T4
        ("xpu", True, "", "bf16", "bf16"),
        ("xpu", False, "", "fp16", "fp32"),
        ("mps", True, "Apple M3 Max", "bf16", "bf16"),
        ("mps", True, "Apple M1", "fp16", "fp32"),
        ("cpu", True, "", "fp32", "fp32"),
    ],
)
def test_bf16_is_stored_only_where_the_device_computes_it(
    gpus: FakeGpus, kind: str, bf16: bool, apple: str, plain: str, quantised: str
) -> None:
    gpus.put(kind, bf16=bf16, apple=apple)
    device = devices.choose("auto")

    stored, reason = loading.choose_precision("auto", device)
    assert stored == plain
    assert ("no native bf16" in reason) == (plain == "fp16")
    assert loading.choose_precision("auto", device, quantized=True)[0] == quantised


def test_a_person_may_choose_emulated_bf16_and_is_told(gpus: FakeGpus) -> None:
    gpus.put("cuda", bf16=False)

    stored, reason = loading.choose_precision("bf16", devices.choose("auto"))

    assert stored == "bf16"
    assert reason == "as chosen, though this GPU has no native bf16 and converts, which is slow"


@pytest.mark.parametrize(("bf16", "computed"), [(True, "bf16"), (False, "fp32")])
def test_4_bit_weights_are_unpacked_to_what_the_gpu_computes(
    gpus: FakeGpus, bf16: bool, computed: str
) -> None:
    gpus.put("cuda", bf16=bf16)
    request = LoadModel(quantization="nf4")

    config: Any = quantization.bnb_config(request, devices.choose("auto"))

    assert quantization.computed_in(request, devices.choose("auto")) == computed
    assert config.bnb_4bit_compute_dtype == dtypes.DTYPES[computed]


@pytest.mark.parametrize(
    ("stored", "asked", "computed"),
    [
        ("fp32", "auto", "fp32"),
        ("fp32", "bf16", "bf16"),
        ("fp16", "auto", "fp16"),
        ("bf16", "auto", "bf16"),
    ],
)
def test_steps_compute_in_bf16_on_such_a_gpu_only_where_asked(
    gpus: FakeGpus, stored: str, asked: Any, computed: str
) -> None:
    gpus.put("cuda", bf16=False)
    train = Train(name="x", data="starter:pirate", precision=asked)

    known = precision_choice.without_timing(train, stored, devices.choose("auto"))

    assert known is not None
    assert known[0] == computed


def test_on_a_gpu_with_bf16_the_clock_decides_for_a_base_in_fp32(gpus: FakeGpus) -> None:
    gpus.put("cuda")
    train = Train(name="x", data="starter:pirate")

    assert precision_choice.without_timing(train, "fp32", devices.choose("auto")) is None


# -- quantised bases -------------------------------------------------------------------------------


def test_a_base_is_not_quantised_on_an_apple_gpu_and_the_reason_is_said(gpus: FakeGpus) -> None:
    gpus.put("mps")

    with pytest.raises(Unsupported, match=r"downloads from the Hub.* choose cpu as device"):
        loading.prepare(LoadModel(quantization="nf4"), SILENT)


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_without_bitsandbytes_own_library_nothing_is_quantised_on_a_gpu(
    gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    gpus.put(kind)
    mock = quantization.cextension.ErrorHandlerMockBNBNativeLibrary("no library")
    monkeypatch.setattr(quantization.cextension, "lib", mock)

    assert "has no library for this" in quantization.blocker(devices.choose("auto"))
    assert quantization.blocker(torch.device("cpu")) == ""


@pytest.mark.parametrize(
    ("kind", "bf16", "plain", "recommended"),
    [("cuda", False, 2, "none"), ("mps", True, 2, "none")],
)
def test_the_table_of_quantisations_plans_for_the_gpu_that_is_here(
    gpus: FakeGpus,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    kind: str,
    bf16: bool,
    plain: int,
    recommended: str,
) -> None:
    gpus.put(kind, bf16=bf16)
    monkeypatch.setattr(devices, "free_bytes", lambda device: GB)
    shape = Shape.from_config(quantization_table.STARTER / "model" / "config.json")

    table = quantization_table.compare(
        QuantizationTable(source="starter"), SILENT, Settings(workspace=tmp_path)
    )

    rows = {choice.quantization: choice for choice in table.choices}
    assert table.recommended == recommended
    assert rows["none"].memory_bytes == plain * shape.parameters
    rest = 4 if not bf16 else 2  # what is not quantised of a quantised base
    kept = memory_estimate.Setup(stored="fp32" if rest == 4 else "bf16", quantization="int8")
    assert rows["int8"].memory_bytes == weight_bytes(shape, kept)
    blocked = [id for id, row in rows.items() if row.blocker]
    assert blocked == (["int8", "nf4", "fp4"] if kind == "mps" else [])


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_gpu_is_asked_for_its_own_memory(
    gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    gpus.put(kind)
    called: list[str] = []
    module = SimpleNamespace(
        mem_get_info=lambda device: (3 * GB, 8 * GB),
        memory_allocated=lambda device: 2 * GB,
        max_memory_allocated=lambda device: 4 * GB,
        reset_peak_memory_stats=lambda device: called.append("reset"),
        empty_cache=lambda: called.append("emptied"),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    device = devices.choose("auto")

    assert memory.available(device) == 3 * GB
    assert memory.resident(device) == 2 * GB
    assert memory.peak(device) == 4 * GB
    memory.reset_peak(device)
    memory.release(device)
    assert called == ["reset", "emptied"]


def test_an_apple_gpu_shares_the_machines_memory(
    gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.put("mps")
    state = SimpleNamespace(driver=1 * GB, machine=16 * GB, emptied=0)
    mps = torch.mps
    monkeypatch.setattr(mps, "recommended_max_memory", lambda: 8 * GB)
    monkeypatch.setattr(mps, "driver_allocated_memory", lambda: state.driver)
    monkeypatch.setattr(mps, "current_allocated_memory", lambda: GB // 2)
    monkeypatch.setattr(mps, "empty_cache", lambda: setattr(state, "emptied", state.emptied + 1))
    machine = SimpleNamespace
    monkeypatch.setattr(
        devices.psutil, "virtual_memory", lambda: machine(available=state.machine, total=32 * GB)
    )
    device = devices.choose("auto")

    assert memory.available(device) == 7 * GB
    state.machine = 2 * GB  # other programs have taken it
    assert memory.available(device) == 2 * GB
    assert memory.resident(device) == GB // 2
    memory.reset_peak(device)
    state.driver = 5 * GB
    assert memory.peak(device) == 5 * GB
    assert state.emptied == 1


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_every_kind_is_estimated(kind: str) -> None:
    shape = Shape.from_config(quantization_table.STARTER / "model" / "config.json")
    setup = memory_estimate.Setup(stored="fp16", computed="fp16", device=kind, trainable=1000)

    assert memory_estimate.estimate(shape, setup) == memory_estimate.estimate(
        shape, memory_estimate.Setup(stored="bf16", computed="bf16", device="cuda", trainable=1000)
    )


# -- steps -----------------------------------------------------------------------------------------


def test_a_batch_with_a_layout_moves_to_a_gpu() -> None:
    layout = packed_attention.Layout.of([3, 2])
    batch = {"input_ids": torch.zeros(1, 5, dtype=torch.int64), "layout": layout}

    moved = step_loss.to_device(batch, torch.device("meta"))

    assert moved["input_ids"].device.type == "meta"
    assert {group.gather.device.type for group in moved["layout"].groups} == {"meta"}


@pytest.mark.parametrize(
    ("kind", "pins"), [("cuda", True), ("xpu", True), ("mps", False), ("cpu", False)]
)
def test_memory_is_pinned_where_the_device_reads_it(
    gpus: FakeGpus, tmp_path: Any, kind: str, pins: bool
) -> None:
    gpus.put("cpu")  # Trainer's arguments ask the real machine
    train = Train(name="x", data="starter:pirate")

    made = trainer_arguments.arguments(
        train, folder=tmp_path, total_steps=4, device=torch.device(kind)
    )

    assert made.dataloader_pin_memory is pins


@pytest.mark.parametrize(
    ("kind", "sentence"), [("mps", "Answers are not compiled on Apple GPUs."), ("xpu", "Triton")]
)
def test_what_cannot_be_compiled_for_is_said(kind: str, sentence: str) -> None:
    import importlib.util

    if kind == "xpu" and importlib.util.find_spec("triton"):
        pytest.skip("Triton is installed here.")
    assert compiling.obstacle(torch.device(kind)).startswith(sentence)


# -- several processes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "backend"), [("cuda", "nccl"), ("xpu", "xccl"), ("cpu", "gloo")])
def test_processes_are_connected_by_what_suits_their_device(kind: str, backend: str) -> None:
    assert devices.connection(kind) == backend


def test_a_process_without_a_gpu_of_its_own_is_refused(
    gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.put("mps")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")

    with (
        pytest.raises(Unsupported, match="has 1 GPU, which is not enough for process 2 on it"),
        process_group.joined("mps"),
    ):
        raise AssertionError("It was let in.")
    gpus.put("xpu", count=2)
    devices.take(1)
    assert gpus.taken == [1]
