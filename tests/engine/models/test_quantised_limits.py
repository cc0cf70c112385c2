"""What a quantised base cannot give, said before anything is kept, and slots on such a base."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend import Service, errors
from backend import requests as rq
from backend import results as rs
from backend.engine.models.model_size import Shape
from backend.engine.planning import quantization_table
from backend.engine.training import memory_estimate
from backend.settings import STARTER
from tests.engine.tiny import enlist, lora, start_service, write_adapter, write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(params=["nf4", "int8"])
def service(base: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    with start_service(tmp_path / "workspace", base) as service:
        enlist(service, "heavy", lora(r=4, use_dora=True), seed=9)
        enlist(service, "plain", lora(r=8))
        enlist(service, "wide", lora(r=16, lora_alpha=4), seed=3)
        quantised = rq.LoadModel(source=str(base), quantization=request.param)
        service.start(quantised).result(timeout=120)
        yield service


def names(service: Service) -> list[str]:
    return [info.name for info in service.snapshot().adapters]


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_took_from_the_weights_is_refused(
    service: Service, base: Path, tmp_path: Path, start: str
) -> None:
    config = lora(r=4, init_lora_weights=start)
    folder = write_adapter(tmp_path / start, base, config)

    report = service.start(rq.InspectAdapter(source=str(folder))).result(timeout=60)
    with pytest.raises(errors.Unsupported, match="this base is loaded quantised"):
        service.start(rq.LoadAdapter(source=str(folder))).result(timeout=60)

    assert report.verdict == "cannot"
    assert any("without quantisation" in reason.cure for reason in report.reasons)
    assert names(service) == ["heavy", "plain", "wide"]


def test_a_whole_weight_change_is_not_converted_from_rough_weights(service: Service) -> None:
    request = rq.ConvertAdapter(name="heavy", new_name="light")
    with pytest.raises(errors.Unsupported, match="needs the base's own weights"):
        service.start(request).result(timeout=60)

    assert names(service) == ["heavy", "plain", "wide"]
    smaller = rq.ConvertAdapter(name="plain", new_name="smaller", rank=2)
    assert service.start(smaller).result(timeout=60).rank == 2


def test_a_slot_on_a_quantised_base_swaps_and_leaves(service: Service) -> None:
    both: list[rq.Variant] = [[("plain", 1.0)], [("wide", 1.0)]]
    asked = rq.Score(texts=["The cat is on the mat."], variants=both)
    before = service.start(asked).result(timeout=60).scores

    slot = rq.PrepareHotswap(adapters=["plain", "wide"], compile=False)
    service.start(slot).result(timeout=120)
    inside = service.start(asked).result(timeout=60).scores
    service.start(rq.EndHotswap()).result(timeout=60)

    for one, other in zip(before, inside, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_the_table_tells_what_a_run_adds_and_what_double_quantisation_saves(
    service: Service,
) -> None:
    def table(**fields: bool) -> dict[str, rs.QuantizationChoice]:
        request = rq.QuantizationTable(source="starter", **fields)
        found: rs.QuantizationTable = service.start(request).result(timeout=60)
        return {choice.quantization: choice for choice in found.choices}

    double, single = table(double_quant=True), table()

    assert all(choice.run_bytes > 0 for choice in double.values())
    assert double["nf4"].memory_bytes < single["nf4"].memory_bytes
    assert double["int8"].memory_bytes == single["int8"].memory_bytes


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ('{"model_type": "martian"}', "has the architecture 'martian', not known to Transformers"),
        ("{}", "has the architecture None, not known"),
        ('{"model_type": "vit"}', "is a vit model, which does not continue text"),
        ("[1, 2", "is not valid JSON"),
        (
            '{"model_type": "llama", "hidden_size": -64, "num_attention_heads": 4}',
            "says hidden_size = -64, and from 0 to .* are possible",
        ),
        (
            '{"model_type": "llama", "hidden_size": "big"}',
            "Validation error for field 'hidden_size': .*int",
        ),
        ('{"model_type": "own", "auto_map": {"AutoConfig": "x"}}', "needs its own program code"),
    ],
)
def test_a_configuration_that_is_none_is_said_in_a_sentence(
    service: Service, tmp_path: Path, config: str, sentence: str
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "config.json").write_text(config)

    with pytest.raises((errors.ModelError, errors.Unsupported), match=sentence):
        service.start(rq.QuantizationTable(source=str(folder))).result(timeout=60)


def test_a_gpu_that_is_elsewhere_is_planned_for_and_said(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    found = service.start(rq.QuantizationTable(source="starter", device="cuda")).result(timeout=60)

    assert (found.device, found.precision, found.elsewhere) == ("cuda", "bf16", True)
    assert all(choice.fits for choice in found.choices)
    assert found.free_bytes == 0
    assert "This machine has no such GPU, so its memory is not known." in found.reason
    assert found.recommended == "none"  # so small a base fits anywhere
    monkeypatch.setattr(quantization_table, "ANY_GPU_BYTES", 0)
    large = service.start(rq.QuantizationTable(source="starter", device="cuda")).result(timeout=60)
    assert large.recommended == "nf4"
    assert "use it if the GPU has enough memory" in large.reason
    asked = rq.QuantizationTable(source="starter", device="cuda", measure=True)
    with pytest.raises(errors.Unsupported, match="has no NVIDIA GPU"):
        service.start(asked).result(timeout=60)


def test_checkpointing_comes_by_itself_where_a_run_would_not_fit_and_is_said(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = rq.Train(
        name="tight", data="starter:pirate", tokens_per_step=64, max_steps=2, precision="fp32"
    )
    plain = service.start(asked).result(timeout=120)
    assert "Gradient checkpointing stays off" in plain.preparation

    monkeypatch.setattr(memory_estimate, "needs_checkpointing", lambda *_: True)
    again = asked.model_copy(update={"name": "tighter"})
    lean = service.start(again).result(timeout=120)

    assert "Gradient checkpointing is on (without it the run would not fit" in lean.preparation
    assert lean.final_loss == pytest.approx(plain.final_loss, rel=1e-5)


@pytest.mark.parametrize(
    ("setup", "chosen"),
    [
        ({}, False),
        ({"quantization": "nf4"}, True),
        ({"quantization": "int8"}, True),
        ({"device": "cuda", "stored": "bf16", "computed": "bf16"}, True),
    ],
)
def test_a_quantised_base_or_a_gpu_turns_checkpointing_on(
    setup: dict[str, str], chosen: bool
) -> None:
    shape = Shape.from_config(STARTER / "model" / "config.json")
    wanted = memory_estimate.Setup(**setup)  # type: ignore[arg-type]
    free = memory_estimate.estimate(shape, replace(wanted, exact=True)).run - 1

    assert memory_estimate.needs_checkpointing(shape, wanted, free) is chosen
    assert not memory_estimate.needs_checkpointing(shape, wanted, 10 * free)
    assert memory_estimate.settle(shape, wanted, free).checkpointing is chosen


def test_checkpointing_that_the_estimate_chose_is_said_for_a_full_precision_base_too(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = rq.Train(
        name="unquantised", data="starter:pirate", tokens_per_step=64, max_steps=2, precision="fp32"
    )
    monkeypatch.setattr(memory_estimate, "needs_checkpointing", lambda *_: True)  # as on a GPU
    run = base_only.start(asked).result(timeout=120)

    assert run.preparation.startswith("Gradient checkpointing is on (without it the run would not")
