"""A smaller base for a run that does not fit: which one, and what it costs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backend.catalogue.packaged_models import MODEL_NAMES
from backend.catalogue.quantizations import SPEEDS_ON_GPU, SPEEDS_ON_GPU_FROM
from backend.engine.core import devices
from backend.engine.models.model_size import Shape
from backend.engine.planning import smaller_base
from backend.engine.planning.quantization_table import speed_text
from backend.engine.training.memory_estimate import Setup, estimate
from backend.requests import LoadModel, Train
from backend.results import SmallerBase
from backend.settings import Settings
from tests.engine.training.test_memory_estimate import LLAMA_3_8B

GB = 10**9
TRAIN = Train(name="a", data="starter")


@pytest.fixture(scope="module")
def shape() -> Shape:
    return Shape.from_config(LLAMA_3_8B)


@pytest.fixture(autouse=True)
def _native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "computes_bf16", lambda device: True)


def loaded(**facts: Any) -> Any:
    """Return what a worker knows of a loaded base in fp32."""
    known = {
        "precision": "fp32", "quantization": "none", "stored_quantized": "", "layout": "packed",
        "fingerprint": "f", "device": "cpu", "memory_measured_bytes": 32 * GB, **facts,
    }  # fmt: skip
    request = LoadModel(source="/models/eight", revision="main")
    return SimpleNamespace(
        facts=SimpleNamespace(**known),
        plan=SimpleNamespace(request=request),
        device=torch.device("cpu"),
    )


def find(
    shape: Shape, folder: Path, room: int, train: Train = TRAIN, **facts: Any
) -> SmallerBase | None:
    """Look for a base that fits into `room` bytes, the loaded one's own included."""
    base = loaded(**facts)
    setup = Setup(stored=base.facts.precision, quantization=base.facts.quantization)
    return smaller_base.find(
        train,
        base,
        shape,
        setup,
        free=room - base.facts.memory_measured_bytes,
        settings=Settings(workspace=folder),
    )


@pytest.mark.parametrize(("room", "fields"), [
    (33, {"precision": "bf16"}),
    (14, {"quantization": "int8"}),
    (10, {"quantization": "nf4"}),
])  # fmt: skip
def test_the_most_exact_form_that_fits_is_offered(
    shape: Shape, tmp_path: Path, room: int, fields: dict[str, str]
) -> None:
    found = find(shape, tmp_path, room * GB)

    assert found is not None
    assert found.load == {"source": "/models/eight", "revision": "main", **fields}
    assert found.memory_bytes <= room * GB
    assert "answers" in found.price.lower()


def test_the_price_has_figures_only_where_they_were_measured(shape: Shape, tmp_path: Path) -> None:
    found = find(shape, tmp_path, 10 * GB)

    assert found is not None
    assert "1.1 times as long (measured on another machine)" in found.price
    on_gpu = speed_text(SPEEDS_ON_GPU["nf4"], SPEEDS_ON_GPU_FROM)
    assert not any(letter.isdigit() for letter in on_gpu)


def test_where_no_form_fits_a_model_of_the_app_is_offered(shape: Shape, tmp_path: Path) -> None:
    found = find(shape, tmp_path, 1 * GB)

    assert found is not None
    assert LoadModel(**found.load).source in MODEL_NAMES
    assert "another model" in found.price


def test_nothing_is_offered_that_is_larger_or_does_not_fit(shape: Shape, tmp_path: Path) -> None:
    assert find(shape, tmp_path, 10_000_000) is None
    small = Shape.from_config(smaller_base.STARTER / "model" / "config.json")
    assert find(small, tmp_path, 100 * GB, quantization="nf4") is None


def test_a_quantised_base_and_a_continued_adapter_keep_to_what_is_possible(
    shape: Shape, tmp_path: Path
) -> None:
    going_on = TRAIN.model_copy(update={"start_from": "earlier"})

    assert find(shape, tmp_path, 1 * GB, going_on) is None
    found = find(shape, tmp_path, 10 * GB, quantization="nf4", precision="bf16")
    assert found is not None
    assert LoadModel(**found.load).source != "/models/eight"


def test_the_offer_counts_the_base_and_the_run(shape: Shape, tmp_path: Path) -> None:
    found = find(shape, tmp_path, 14 * GB)
    least = estimate(shape, Setup(quantization="int8", checkpointing=True))

    assert found is not None
    assert found.memory_bytes >= dict(least.parts)["weights"] + least.run // 2
