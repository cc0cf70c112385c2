"""Embeddings and heads beside LoRA: those that equal the base's are left out, others refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from backend import Service, Settings
from backend import requests as rq
from backend.engine.adapters import base_copies
from backend.errors import Unsupported
from backend.files.safetensors_header import read_header
from tests.engine import tiny
from tests.engine.adapters.lifecycle.conftest import WEIGHTS, Bench, do

EMBEDDING = "base_model.model.model.embed_tokens.weight"
HEAD = "base_model.model.lm_head.weight"
Change = Callable[[torch.Tensor], torch.Tensor]


def with_copies(
    base: Path, source: Path, folder: Path, change: Change = torch.clone, *, only: str = ""
) -> Path:
    """Store the base's embeddings beside an adapter's weights, as PEFT does."""
    shutil.copytree(source, folder)
    model = tiny.fresh(base)
    copies = {EMBEDDING: model.get_input_embeddings(), HEAD: model.get_output_embeddings()}
    tensors = load_file(folder / WEIGHTS)
    for key, module in copies.items():
        weight = module.weight.detach()
        tensors[key] = change(weight) if not only or only == key else weight.clone()
    save_file({key: t.contiguous() for key, t in tensors.items()}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_copies_of_the_base_are_left_out_with_a_note(
    bench: Bench, tmp_path: Path, dtype: torch.dtype
) -> None:
    source = with_copies(bench.base, bench.good, tmp_path / "both", lambda w: w.to(dtype))

    report = do(bench, rq.InspectAdapter(source=str(source)))
    added = do(bench, rq.LoadAdapter(source=str(source), name="newcomer"))

    how = "bit for bit" if dtype == torch.float32 else "in the lower of the two precisions"
    for notes in (report.notes, added.notes):
        assert any("'lm_head.weight', 'model.embed_tokens.weight'" in note for note in notes)
        assert any(how in note for note in notes)
    expected = tiny.plain_scores(bench.base, bench.good)
    assert tiny.scores(bench.service, [("newcomer", 1.0)]) == pytest.approx(expected, rel=1e-5)
    kept = bench.service.library.folder(added.adapter.id)
    assert all(".lora_" in key for key in load_file(kept / WEIGHTS))
    assert (report.verdict, report.parameters) == (
        do(bench, rq.InspectAdapter(source=str(bench.good))).verdict,
        added.adapter.parameters,
    )


def test_what_peft_stores_by_itself_is_left_out(bench: Bench, tmp_path: Path) -> None:
    model = get_peft_model(tiny.fresh(bench.base), tiny.lora(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "own", save_embedding_layers=True)
    assert {EMBEDDING, HEAD} & load_file(tmp_path / "own" / WEIGHTS).keys()

    report = do(bench, rq.InspectAdapter(source=str(tmp_path / "own")))

    assert report.verdict == "fits"
    assert any("they were left out" in note for note in report.notes)


def one_bit(weight: torch.Tensor) -> torch.Tensor:
    changed = weight.clone()
    changed.view(torch.int32)[-1, -1] ^= 1
    return changed


@pytest.mark.parametrize("key", [EMBEDDING, HEAD])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (one_bit, "its values are not those of the base"),
        (lambda w: torch.cat([w, w[:1]]), "its shape is"),
        (lambda w: w.half() + 0.01, "its values are not those of the base"),
    ],
)
def test_a_copy_that_differs_anywhere_stays_refused(
    bench: Bench, tmp_path: Path, key: str, change: Change, reason: str
) -> None:
    source = with_copies(bench.base, bench.good, tmp_path / "both", change, only=key)

    report = do(bench, rq.InspectAdapter(source=str(source)))

    assert report.verdict == "cannot"
    assert reason in report.reasons[0].what
    with pytest.raises(Unsupported, match="which is not an adapter weight"):
        do(bench, rq.LoadAdapter(source=str(source)))


def test_other_layers_of_the_base_are_compared_as_well(bench: Bench, tmp_path: Path) -> None:
    source = Path(shutil.copytree(bench.good, tmp_path / "norm"))
    tensors = load_file(source / WEIGHTS)
    norm = tiny.fresh(bench.base).model.norm.weight.detach()
    save_file(tensors | {"base_model.model.model.norm.weight": norm}, source / WEIGHTS)
    assert do(bench, rq.InspectAdapter(source=str(source))).verdict == "fits"

    save_file(tensors | {"base_model.model.model.norm.weight": norm + 1}, source / WEIGHTS)
    assert do(bench, rq.InspectAdapter(source=str(source))).verdict == "cannot"
    save_file(tensors | {"base_model.model.model.other.weight": norm}, source / WEIGHTS)
    assert do(bench, rq.InspectAdapter(source=str(source))).verdict == "cannot"


def test_values_are_compared_in_blocks(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_copies, "VALUES", 1000)
    same = with_copies(bench.base, bench.good, tmp_path / "same")
    other = with_copies(bench.base, bench.good, tmp_path / "other", one_bit)

    assert do(bench, rq.InspectAdapter(source=str(same))).verdict == "fits"
    assert do(bench, rq.InspectAdapter(source=str(other))).verdict == "cannot"


def test_minus_zero_and_nan_are_compared_by_their_bits(tmp_path: Path) -> None:
    def stored(name: str, values: torch.Tensor) -> base_copies.StoredTensor:
        save_file({"x": values}, tmp_path / name)
        return read_header(tmp_path / name)[0]

    nan, zero = torch.tensor([float("nan"), 1.0]), torch.zeros(2)
    assert base_copies.compare(stored("a", nan), stored("b", nan)) == "equal"
    assert base_copies.compare(stored("c", zero), stored("d", -zero)) == "different"


@pytest.fixture
def tied(tmp_path: Path) -> Iterator[tuple[Service, Path, Path]]:
    base = tiny.write_base(tmp_path / "untied")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(base)
    good = tiny.write_adapter(tmp_path / "good", base, tiny.lora(r=2))
    with tiny.start_service(tmp_path / "workspace", base) as service:
        yield service, base, good


def test_a_tied_head_in_bf16_equals_the_embeddings(
    tied: tuple[Service, Path, Path], tmp_path: Path
) -> None:
    service, base, good = tied
    source = with_copies(base, good, tmp_path / "both", lambda w: w.to(torch.bfloat16))
    changed = with_copies(base, good, tmp_path / "changed", lambda w: w + 1, only=HEAD)

    reports = [
        service.start(rq.InspectAdapter(source=str(each))).result(timeout=60)
        for each in (source, changed)
    ]

    assert any("bit for bit" in note for note in reports[0].notes)
    assert [report.verdict for report in reports] == ["fits", "cannot"]


def test_without_a_base_it_is_said_what_cannot_be_known(bench: Bench, tmp_path: Path) -> None:
    source = with_copies(bench.base, bench.good, tmp_path / "both")
    with Service(Settings(workspace=tmp_path / "workspace", runtime="inline")) as service:
        report = service.start(rq.InspectAdapter(source=str(source))).result(timeout=60)

    assert report.reasons[0].what == "No base model is loaded."
    assert any("is known only when the base is loaded" in note for note in report.notes)


def test_saved_modules_that_the_configuration_names_stay_refused(
    bench: Bench, tmp_path: Path
) -> None:
    source = with_copies(bench.base, bench.good, tmp_path / "both")
    config = json.loads((source / "adapter_config.json").read_text())
    config["modules_to_save"] = ["lm_head"]
    (source / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="contains whole layers"):
        do(bench, rq.LoadAdapter(source=str(source)))
