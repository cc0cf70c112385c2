"""Checkpoints that are already quantised: loaded as they are, unpacked, or refused with a name."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backend import Service
from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.models import loading, stored_quantization
from backend.engine.models.loading import Base
from backend.engine.planning import quantization_table
from backend.errors import ModelError, Unsupported, WorkbenchError
from backend.results import ModelFacts
from backend.settings import Settings
from tests.architectures.tiny_models import write_model
from tests.engine.stored_bases import configure, write_fp8, write_mxfp4, write_packed
from tests.engine.tiny import fresh, lora, scores, start_service, write_adapter, write_base

SILENT = Control(0, lambda message: None)
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KINDS: dict[str, dict[str, Any]] = {
    "nf4": {**NF4, "bnb_4bit_compute_dtype": "float16"},
    "nf4 twice": {**NF4, "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("plain") / "plain")


@pytest.fixture(scope="module")
def packed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packed")
    return {kind: write_packed(folder / kind, plain, **said) for kind, said in KINDS.items()}


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def load(folder: Path, **fields: Any) -> Base:
    return loading.load(rq.LoadModel(source=str(folder), device="cpu", **fields), SILENT)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


# -- bitsandbytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_checkpoint_loads_as_it_is(
    packed: dict[str, Path], plain: Path, kind: str, precision: str
) -> None:
    loaded = load(packed[kind], precision=precision)
    facts = loaded.facts

    assert (facts.quantization, facts.double_quant) == (kind.split()[0], kind == "nf4 twice")
    assert facts.stored_quantized in facts.notes[0]
    assert facts.parameters == sum(each.numel() for each in fresh(plain).parameters())
    assert facts.memory_predicted_bytes == pytest.approx(facts.memory_measured_bytes, rel=0.01)
    kept = {p.dtype for p in loaded.model.parameters() if p.is_floating_point()}
    assert kept == {loaded.dtype}


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_checkpoint_answers_as_the_base_that_was_quantised_here(
    packed: dict[str, Path], plain: Path, kind: str
) -> None:
    double = {"double_quant": True, "compute_dtype": "bf16"} if kind == "nf4 twice" else {}
    here = load(plain, quantization=kind.split()[0], **double)

    torch.testing.assert_close(logits(load(packed[kind]).model), logits(here.model))


def test_a_compute_type_in_which_gradients_overflow_is_replaced(packed: dict[str, Path]) -> None:
    facts = load(packed["nf4"]).facts

    assert facts.quantized_compute == "fp32"
    assert "compute type was replaced by fp32" in facts.notes[0]
    assert load(packed["nf4 twice"]).facts.quantized_compute == "bf16"
    chosen = load(packed["nf4 twice"], quantization="nf4", compute_dtype="fp32").facts
    assert chosen.quantized_compute == "fp32"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"quantization": "int8"}, r"already quantised to 4-bit \(nf4\).* to int8"),
        ({"quantization": "nf4", "double_quant": True}, "without double quantisation"),
        ({"precision": "bf16", "quantization": "fp4"}, r"to 4-bit \(nf4\).* to fp4"),
    ],
)
def test_another_quantisation_than_that_of_the_files_is_refused(
    packed: dict[str, Path], asked: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Unsupported, match=sentence):
        load(packed["nf4"], **asked)


def test_the_table_offers_only_what_the_files_are(packed: dict[str, Path], tmp_path: Path) -> None:
    asked = rq.QuantizationTable(source=str(packed["nf4"]), device="cpu")
    table = quantization_table.compare(asked, SILENT, Settings(workspace=tmp_path))

    assert table.recommended == "none"
    assert "loaded as they are" in table.reason
    assert {c.quantization for c in table.choices if c.blocker} == {"fp4", "int8"}
    titles = {choice.quantization: choice.title for choice in table.choices}
    assert titles == {
        "none": "as it is: 4-bit (nf4)", "int8": "8-bit (int8)", "fp4": "4-bit (fp4)"
    }  # fmt: skip


def test_files_that_are_not_what_their_config_says_are_refused(copy: Path) -> None:
    configure(copy, quantization_config={**KINDS["nf4"], "quant_method": "bitsandbytes"})

    with pytest.raises(ModelError, match="hold no quantised weights"):
        load(copy)


# -- a whole cycle -------------------------------------------------------------------------------


@pytest.fixture(params=["nf4 twice", "int8"])
def service(
    packed: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Service]:
    base = shutil.copytree(packed[request.param], tmp_path / "base")
    (base / "README.md").write_text("---\nbase_model: someone/plain\n---\n", encoding="utf-8")
    with start_service(tmp_path / "workspace", base) as service:
        yield service


def facts_of(service: Service) -> ModelFacts:
    facts = service.snapshot().base
    assert facts is not None
    return facts


def test_a_run_on_a_packed_base_is_kept_read_back_and_chats(service: Service) -> None:
    bare = scores(service, [])
    train = rq.Train(name="learned", max_steps=3, tokens_per_step=128, precision="fp32")
    run = service.start(train).result(timeout=300)
    changed = scores(service, [("learned", 1.0)])
    asked = rq.Chat(
        messages=[rq.Message(role="user", content="Hello!")],
        variant=[("learned", 1.0)],
        max_new_tokens=3,
    )
    list(service.chat(asked))

    assert run.preparation
    assert scores(service, []) == bare != changed
    service.start(rq.LoadModel(source=facts_of(service).path)).result(timeout=120)
    assert scores(service, [("learned", 1.0)]) == changed


def test_an_adapter_of_the_full_precision_model_is_added_with_a_warning(
    service: Service, plain: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "twin", plain, lora(r=4))
    configure(folder, "adapter_config.json", base_model_name_or_path="someone/plain")

    report = service.start(rq.InspectAdapter(source=str(folder))).result(timeout=60)
    service.start(rq.LoadAdapter(source=str(folder))).result(timeout=60)

    assert report.verdict == "warning"
    assert "the loaded base is a quantised copy of that" in report.reasons[0].what
    assert scores(service, [("twin", 1.0)]) != scores(service, [])


def test_a_merge_into_packed_files_names_the_full_precision_model(
    service: Service, plain: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "twin", plain, lora(r=4))
    service.start(rq.LoadAdapter(source=str(folder))).result(timeout=60)
    merge = rq.Merge(variant=[("twin", 1.0)], destination=str(tmp_path / "merged"))

    with pytest.raises(Unsupported, match=r"already quantised.* Load someone/plain, and merge"):
        service.start(merge).result(timeout=120)

    assert not (tmp_path / "merged").exists()


# -- files that are unpacked ---------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fp8_is_unpacked_exactly(copy: Path, precision: str) -> None:
    true = write_fp8(copy, block=32)
    loaded = load(copy, precision=precision)

    found = loaded.model.state_dict()
    for key, weight in true.items():
        torch.testing.assert_close(found[key], weight.to(loaded.dtype), rtol=0, atol=0)
    facts = loaded.facts
    assert (facts.stored_quantized, facts.quantization) == ("FP8", "none")
    assert facts.memory_predicted_bytes == pytest.approx(facts.memory_measured_bytes, rel=0.01)
    assert "They were unpacked" in facts.notes[0]


def test_mxfp4_is_unpacked_exactly(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "experts", "gpt_oss", intermediate_size=64)
    true = write_mxfp4(folder)
    loaded = load(folder)

    found = loaded.model.state_dict()
    for key, weight in true.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=0)
    facts = loaded.facts
    assert facts.stored_quantized == "MXFP4"
    assert facts.memory_predicted_bytes == pytest.approx(facts.memory_measured_bytes, rel=0.01)


def test_fp8_whose_last_blocks_are_short_is_refused(copy: Path) -> None:
    write_fp8(copy, block=40)

    with pytest.raises(Unsupported, match=r"down_proj.*would not apply correctly"):
        load(copy)


def test_full_precision_weights_are_read_whatever_the_config_says(copy: Path, plain: Path) -> None:
    configure(copy, quantization_config={"quant_method": "fp8"})

    facts = load(copy).facts

    assert (facts.fingerprint, facts.notes) == (load(plain).facts.fingerprint, ())


def test_a_merge_of_unpacked_weights_is_full_precision_everywhere(
    copy: Path, plain: Path, tmp_path: Path
) -> None:
    write_fp8(copy, block=32)
    # Transformers refuses to save such settings
    configure(copy, "generation_config.json", do_sample=False, temperature=0.6)
    adapter = write_adapter(tmp_path / "learned", plain, lora(r=4))
    with start_service(tmp_path / "workspace", copy) as service:
        service.start(rq.LoadAdapter(source=str(adapter))).result(timeout=60)
        expected = scores(service, [("learned", 1.0)])
        merge = rq.Merge(variant=[("learned", 1.0)], destination=str(tmp_path / "merged"))
        merged = service.start(merge).result(timeout=120)
        service.start(rq.LoadModel(source=merged.path)).result(timeout=120)

        assert scores(service, []) == pytest.approx(expected, rel=1e-5)
    assert "its files are in FP8" in merged.notes[0]
    model = fresh(Path(merged.path))
    assert not hasattr(model.config, "quantization_config")
    assert {each.dtype for each in model.parameters()} == {torch.float32}


# -- files that are not read ---------------------------------------------------------------------


def nothing(folder: Path) -> None:
    """Leave a folder without any name of the full-precision model."""


def named_by_card(folder: Path) -> None:
    text = "---\nlicense: mit\nbase_model:\n- Qwen/Qwen2.5-0.5B-Instruct\n---\n# A copy\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def named_by_config(folder: Path) -> None:
    configure(folder, _name_or_path="Qwen/Qwen2.5-0.5B-Instruct")


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "compressed-tensors", "torchao", "new"])
@pytest.mark.parametrize(
    ("name", "cure"),
    [
        (nothing, "Load the full-precision model that it was made from, and choose"),
        (named_by_card, "Load Qwen/Qwen2.5-0.5B-Instruct, and choose"),
        (named_by_config, "Load Qwen/Qwen2.5-0.5B-Instruct, and choose"),
    ],
)
def test_other_copies_are_refused_with_the_model_to_load(
    copy: Path, method: str, name: Callable[[Path], None], cure: str
) -> None:
    configure(copy, quantization_config={"quant_method": method})
    name(copy)

    with pytest.raises(Unsupported, match="is a copy that is already quantised with") as caught:
        load(copy)

    assert cure in caught.value.cure


@pytest.mark.parametrize(
    "value",
    ["gptq", ["gptq"], 4, {"bits": 4}, {"quant_method": None, "bits": 4}, {"quant_method": ["x"]},
     {**KINDS["nf4"], "load_in_8bit": True}, {**KINDS["nf4"], "bnb_4bit_quant_type": "int4"},
     {"quant_method": "bitsandbytes"}, {"quant_method": "fp8", "weight_block_size": "x"}],
    ids=str,
)  # fmt: skip
def test_strange_descriptions_are_refused_in_a_sentence(copy: Path, value: Any) -> None:
    if isinstance(value, dict) and value.get("quant_method") == "fp8":
        write_fp8(copy, block=32)
    configure(copy, quantization_config=value)

    with pytest.raises(WorkbenchError):
        load(copy)


@pytest.mark.parametrize("value", [None, {}, []], ids=str)
def test_an_empty_description_is_none(copy: Path, value: Any) -> None:
    configure(copy, quantization_config=value)

    assert load(copy).facts.stored_quantized == ""


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ("base_model: some/model", "some/model"),
        ("base_model:\n  - 'some/model'\n  - other/model", "some/model"),
        ("base_model: [some/model, other/model]\nbase_model_relation: quantized", "some/model"),
        ("base_model: some/model\nbase_model_relation: finetune", ""),
        ("base_model: ../../model", ""),
        ("base_model:" + " " * 1_000_000 + "\n" + " " * 1_000_000, ""),
        ("license: mit", ""),
    ],
    ids=["plain", "list", "inline list", "another relation", "path", "blanks", "none"],
)
def test_the_card_names_the_full_precision_model(tmp_path: Path, metadata: str, name: str) -> None:
    text = f"---\n{metadata}\n---\n# A copy\nbase_model: not/this\n"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")

    assert stored_quantization.original_of(tmp_path, {}, "copy") == name


def test_a_card_that_cannot_be_read_names_nothing(tmp_path: Path) -> None:
    assert stored_quantization.original_of(tmp_path, {}, "copy") == ""
    (tmp_path / "README.md").write_bytes(b"---\nbase_model: some/model\n---\n\xff")
    assert stored_quantization.original_of(tmp_path, {}, "copy") == ""
