"""Adapters come from everywhere, whole or not at all, with plain PEFT as the oracle."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from backend import requests as rq
from backend.engine.adapters import lifecycle, saving
from backend.engine.adapters.import_sources import display_name
from backend.engine.adapters.inspection import effective_rank
from backend.engine.core.job_control import Control
from backend.engine.methods import peft_io
from backend.errors import DiskFull, InvalidRequest, VerificationFailed
from tests.engine import tiny
from tests.engine.adapters.lifecycle.conftest import WEIGHTS, Bench, do, state
from tests.hub_stand_in import HubStandIn, Repository


def test_a_folder_and_a_zip_of_it_answer_as_plain_peft(bench: Bench, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", bench.good.parent, "good one")
    expected = tiny.plain_scores(bench.base, bench.good)

    added = [do(bench, rq.LoadAdapter(source=source)) for source in (str(bench.good), archive)]

    assert [each.adapter.name for each in added] == ["good one", "packed"]
    for each in added:
        name, folder = each.adapter.name, bench.service.library.folder(each.adapter.id)
        assert tiny.scores(bench.service, [(name, 1.0)]) == pytest.approx(expected, rel=1e-5)
        assert tiny.plain_scores(bench.base, folder) == pytest.approx(expected, rel=1e-5)
        assert each.max_difference <= 1e-5
    assert bench.service.snapshot().active == [("resident", 0.5)]


def test_an_adapter_of_the_hub_is_added_under_its_own_name(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the adapter's own files are asked for."""
    (published := tmp_path / "published").mkdir()
    for name in ("adapter_config.json", WEIGHTS):
        shutil.copyfile(bench.good / name, published / name)
    (published / "training_args.bin").write_bytes(b"pickled")
    hub = HubStandIn({"someone/tiny-pirate": Repository(published)})
    real = lifecycle.incoming

    def from_the_stand_in(source: str, library: Any, control: Control) -> Any:
        from huggingface_hub import HfApi, snapshot_download

        from backend.engine.core import hub_download as ours

        def download(repo_id: str, **options: Any) -> str:
            options.pop("tqdm_class")
            return snapshot_download(
                repo_id, endpoint=hub.url, cache_dir=str(tmp_path / "cache"), **options
            )

        monkeypatch.setattr(ours, "snapshot_download", download)
        monkeypatch.setattr(ours, "HfApi", lambda: HfApi(endpoint=hub.url))
        return real(source, library, control)

    monkeypatch.setattr(lifecycle, "incoming", from_the_stand_in)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    try:
        added = do(bench, rq.LoadAdapter(source="someone/tiny-pirate"))
    finally:
        hub.close()

    assert added.adapter.name == "tiny-pirate"
    assert added.adapter.recipe == "From the Hub: someone/tiny-pirate"
    assert not any(".bin" in path for path in hub.requests)
    expected = tiny.plain_scores(bench.base, bench.good)
    scored = tiny.scores(bench.service, [("tiny-pirate", 1.0)])
    assert scored == pytest.approx(expected, rel=1e-5)


def test_one_of_the_library_is_only_put_on_the_model(bench: Bench) -> None:
    before = state(bench)
    do(bench, rq.UnloadAdapter(name="resident"))
    assert bench.service.snapshot().status == ()

    loaded = do(bench, rq.LoadAdapter(source="library:resident"))

    assert loaded.adapter.name == "resident"
    do(bench, rq.SetActive(adapters=[("resident", 0.5)]))
    assert state(bench) == before


def test_a_taken_name_is_refused_when_asked_for_and_avoided_when_not(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="'Resident 2' is free"):
        do(bench, rq.LoadAdapter(source=str(bench.good), name="Resident"))

    names = [do(bench, rq.LoadAdapter(source=str(bench.good))).adapter.name for _ in range(2)]

    assert names == ["good one", "good one 2"]


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_changes_the_base_is_added_as_plain_lora_that_answers_the_same(
    bench: Bench, tmp_path: Path, start: str
) -> None:
    folder = tiny.write_adapter(
        tmp_path / start, bench.base, tiny.lora(r=3, init_lora_weights=start), seed=9
    )
    before = state(bench)

    report = do(bench, rq.InspectAdapter(source=str(folder)))
    added = do(bench, rq.LoadAdapter(source=str(folder)))

    kept = bench.service.library.folder(added.adapter.id)
    assert report.verdict == "warning"
    assert "plain LoRA of rank 6" in report.reasons[-1].what
    assert "converted to plain LoRA of rank 6" in added.notes[-1]
    assert json.loads((kept / "adapter_config.json").read_text())["init_lora_weights"] is True
    expected = tiny.plain_scores(bench.base, folder)
    assert tiny.scores(bench.service, [(start, 1.0)]) == pytest.approx(expected, rel=1e-4)
    assert tiny.plain_scores(bench.base, kept) == pytest.approx(expected, rel=1e-4)
    assert state(bench)[4] == before[4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_in_half_precision_are_added_exactly(
    bench: Bench, tmp_path: Path, dtype: torch.dtype
) -> None:
    half = Path(shutil.copytree(bench.good, tmp_path / "half"))
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(half / WEIGHTS).items()}
    save_file(tensors, half / WEIGHTS, metadata={"format": "pt"})

    do(bench, rq.LoadAdapter(source=str(half)))

    expected = tiny.plain_scores(bench.base, half)
    assert tiny.scores(bench.service, [("half", 1.0)]) == pytest.approx(expected, rel=1e-5)


def test_dora_magnitudes_of_older_peft_are_understood(bench: Bench, tmp_path: Path) -> None:
    config = tiny.lora(r=4, use_dora=True)
    folder = tiny.write_adapter(tmp_path / "dora", bench.base, config)
    expected = tiny.plain_scores(bench.base, folder)
    tensors = load_file(folder / WEIGHTS)
    for key in [key for key in tensors if "magnitude" in key]:
        tensors[f"{key}.weight"] = tensors.pop(key)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    added = do(bench, rq.LoadAdapter(source=str(folder)))

    assert (added.adapter.method, added.adapter.strength) == ("DoRA", "on-off")
    assert tiny.scores(bench.service, [("dora", 1.0)]) == pytest.approx(expected, rel=1e-5)


def test_a_regular_expression_as_target_becomes_plain_names(bench: Bench, tmp_path: Path) -> None:
    config = tiny.lora(target_modules=r".*\.1\..*(q|v)_proj", r=4)
    folder = tiny.write_adapter(tmp_path / "regex", bench.base, config)

    added = do(bench, rq.LoadAdapter(source=str(folder)))

    kept = bench.service.library.folder(added.adapter.id)
    targets = json.loads((kept / "adapter_config.json").read_text())["target_modules"]
    assert sorted(targets) == [f"model.layers.1.self_attn.{part}_proj" for part in "qv"]
    expected = tiny.plain_scores(bench.base, folder)
    assert tiny.plain_scores(bench.base, kept) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("broken", ["weights", "side-car", "card", "last step"])
def test_a_full_disk_while_adding_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before = state(bench)
    full = OSError(28, "No space left on device")

    def fail(*_: Any, **__: Any) -> None:
        raise full if broken != "weights" else SafetensorError(f"I/O error: {full}")

    with monkeypatch.context() as patch:
        if broken == "weights":
            patch.setattr(peft_io, "save_file", fail)
        elif broken == "card":
            patch.setattr(saving, "write_card", fail)
        else:
            place = "os.fsync" if broken == "side-car" else "_put"
            patch.setattr(f"backend.files.atomic_files.{place}", fail)
        with pytest.raises(DiskFull):
            do(bench, rq.LoadAdapter(source=str(bench.good), name="phoenix"))

    assert state(bench) == before
    assert do(bench, rq.LoadAdapter(source=str(bench.good), name="phoenix"))


def test_an_adapter_that_does_not_read_back_is_taken_off_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(bench)
    with monkeypatch.context() as patch:
        patch.setattr(peft_io, "same_weights", lambda *_: False)
        with pytest.raises(VerificationFailed):
            do(bench, rq.LoadAdapter(source=str(bench.good), name="phoenix"))
    assert state(bench) == before


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_the_size_of_a_change_is_that_of_the_whole_weight(
    bench: Bench, tmp_path: Path, options: dict[str, object]
) -> None:
    config = tiny.lora(r=4, target_modules=["q_proj"], **options)
    folder = tiny.write_adapter(tmp_path / "odd", bench.base, config, seed=5)

    report = do(bench, rq.InspectAdapter(source=str(folder)))

    before, merged = tiny.fresh(bench.base), tiny.fresh(bench.base)
    merged = PeftModel.from_pretrained(merged, folder).merge_and_unload()
    for layer in report.layers:
        weight = before.get_submodule(layer.layer).weight.detach().double()
        change = merged.get_submodule(layer.layer).weight.detach().double() - weight
        assert layer.norm == pytest.approx(float(change.norm()), rel=1e-3)
        assert layer.relative == pytest.approx(float(change.norm() / weight.norm()), rel=1e-3)
        values = torch.linalg.svdvals(change)
        assert layer.effective_rank == pytest.approx(effective_rank(values), rel=1e-2)


def test_a_file_name_becomes_a_name_with_its_letters() -> None:
    assert display_name("Ünïcode näme (v2)!") == "Unicode name v2"
    assert display_name("漢字") == "adapter"
