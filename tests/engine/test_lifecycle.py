"""Adapters come and go: from everywhere, whole or not at all, with plain PEFT as the oracle."""

import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from backend import Service
from backend import requests as rq
from backend.engine import adapters, inspection, lifecycle, saving
from backend.engine.control import Control
from backend.errors import DiskFull, InvalidRequest, NotFound, VerificationFailed, WorkbenchError
from tests.engine import tiny
from tests.hub_stand_in import HubStandIn, Repository

WEIGHTS = "adapter_model.safetensors"


class Bench(NamedTuple):
    service: Service
    base: Path
    good: Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("lifecycle")
    base = tiny.write_base(root / "base", layers=2)
    config = tiny.lora(r=4, lora_alpha=6, rank_pattern={"v_proj": 2})
    good = tiny.write_adapter(root / "good one", base, config, seed=5)
    with tiny.start_service(root / "workspace", base) as service:
        tiny.enlist(service, "resident", tiny.lora(r=2), seed=3)
        yield Bench(service, base, good)


@pytest.fixture(autouse=True)
def only_the_resident(bench: Bench) -> Iterator[None]:
    service = bench.service
    service.start(rq.SetActive(adapters=[("resident", 0.5)])).result(timeout=60)
    yield
    for info in service.library.all():
        if info.name != "resident":
            service.start(rq.DeleteAdapter(name=info.name)).result(timeout=60)


def do(bench: Bench, request: rq.Request) -> Any:
    return bench.service.start(request).result(timeout=60)


def session_of(bench: Bench) -> Any:
    return bench.service.engine._runtime._engine.session  # type: ignore[union-attr]


def state(bench: Bench) -> Any:
    snapshot = bench.service.snapshot()
    folders = sorted(path.name for path in bench.service.library.root.iterdir())
    scored = tiny.scores(bench.service, [("resident", 1.0)])
    return snapshot.active, snapshot.status, snapshot.irregular, folders, scored


# -- adding --------------------------------------------------------------------------------------


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
        from huggingface_hub import snapshot_download

        from backend.engine import hub as ours

        def download(repo_id: str, **options: Any) -> str:
            options.pop("tqdm_class")
            return snapshot_download(
                repo_id, endpoint=hub.url, cache_dir=str(tmp_path / "cache"), **options
            )

        monkeypatch.setattr(ours, "snapshot_download", download)
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
    assert "turned into plain LoRA of rank 6" in added.notes[-1]
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
            patch.setattr(adapters, "save_file", fail)
        elif broken == "card":
            patch.setattr(saving, "write_card", fail)
        else:
            place = "os.fsync" if broken == "side-car" else "_swap"
            patch.setattr(f"backend.storage.{place}", fail)
        with pytest.raises(DiskFull):
            do(bench, rq.LoadAdapter(source=str(bench.good), name="phoenix"))

    assert state(bench) == before
    assert do(bench, rq.LoadAdapter(source=str(bench.good), name="phoenix"))


def test_an_adapter_that_does_not_read_back_is_taken_off_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(bench)
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "same_weights", lambda *_: False)
        with pytest.raises(VerificationFailed):
            do(bench, rq.LoadAdapter(source=str(bench.good), name="phoenix"))
    assert state(bench) == before


# -- names, deletion, the way back ---------------------------------------------------------------


def test_renaming_keeps_answers_and_the_active_set_follows(bench: Bench) -> None:
    scored = tiny.scores(bench.service, [("resident", 0.5)])
    do(bench, rq.RenameAdapter(name="resident", new_name="tenant"))
    try:
        assert bench.service.snapshot().active == [("tenant", 0.5)]
        assert [each.name for each in bench.service.snapshot().status] == ["tenant"]
        assert tiny.scores(bench.service, [("tenant", 0.5)]) == scored
        with pytest.raises(NotFound, match="There is no adapter called 'resident'"):
            tiny.scores(bench.service, [("resident", 1.0)])
        assert do(bench, rq.RenameAdapter(name="tenant", new_name="Tenant")).adapter.name
    finally:
        do(bench, rq.RenameAdapter(name="tenant", new_name="resident"))


def test_a_taken_name_is_not_given_again(bench: Bench) -> None:
    do(bench, rq.LoadAdapter(source=str(bench.good)))
    with pytest.raises(InvalidRequest, match="already an adapter called 'RESIDENT'"):
        do(bench, rq.RenameAdapter(name="good one", new_name="RESIDENT"))
    assert bench.service.library.get("good one")


def test_a_renamed_adapter_is_active_again_after_a_new_start(bench: Bench, tmp_path: Path) -> None:
    with tiny.start_service(tmp_path / "w", bench.base) as service:
        tiny.enlist(service, "first", tiny.lora(r=2), seed=3)
        service.start(rq.SetActive(adapters=[("first", 0.25)])).result(timeout=60)
        service.start(rq.RenameAdapter(name="first", new_name="second")).result(timeout=60)
        scored = tiny.scores(service, [("second", 0.25)])
    again = Service(service.settings)
    with again:
        job = again.restore()
        assert job is not None
        job.result(timeout=60)
        deadline = time.monotonic() + 60
        while again.snapshot().active != [("second", 0.25)] or again.snapshot().job is not None:
            assert time.monotonic() < deadline, again.snapshot()
            time.sleep(0.02)
        assert tiny.scores(again, [("second", 0.25)]) == scored


def test_a_deleted_adapter_comes_back_until_the_app_closes(bench: Bench, tmp_path: Path) -> None:
    with tiny.start_service(tmp_path / "w", bench.base) as service:
        info = tiny.enlist(service, "first", tiny.lora(r=2), seed=3)
        service.start(rq.SetActive(adapters=[("first", 1.0)])).result(timeout=60)
        scored, plain = tiny.scores(service, [("first", 1.0)]), tiny.scores(service, [])

        removed = service.start(rq.DeleteAdapter(name="first")).result(timeout=60)
        snapshot = service.snapshot()
        assert (removed.active, snapshot.active, snapshot.status) == ([], [], ())
        assert [each.name for each in snapshot.deleted] == ["first"]
        assert tiny.scores(service, []) == plain

        service.start(rq.RestoreAdapter(name="first")).result(timeout=60)
        assert tiny.scores(service, [("first", 1.0)]) == scored

        service.start(rq.DeleteAdapter(name="first")).result(timeout=60)
        tiny.enlist(service, "first", tiny.lora(r=2), seed=4)
        restored = service.start(rq.RestoreAdapter(name="first")).result(timeout=60)
        assert (restored.adapter.id, restored.adapter.name) == (info.id, "first 2")
        service.start(rq.DeleteAdapter(name="first 2")).result(timeout=60)
    assert Service(service.settings).library.deleted() == []
    with pytest.raises(NotFound, match="until the app closes"):
        service.library.restore("first 2")


def test_a_name_that_a_run_will_need_is_not_restored(bench: Bench) -> None:
    added = do(bench, rq.LoadAdapter(source=str(bench.good), name="promised")).adapter
    do(bench, rq.DeleteAdapter(name="promised"))
    restored = bench.service.library.restore("promised", ["promised"])
    assert (restored.id, restored.name) == (added.id, "promised 2")


def test_unloading_keeps_the_adapter_and_frees_the_model(bench: Bench) -> None:
    do(bench, rq.LoadAdapter(source=str(bench.good)))
    before = tiny.scores(bench.service, [("good one", 1.0)])

    removed = do(bench, rq.UnloadAdapter(name="good one"))

    assert removed.active == [("resident", 0.5)]
    assert [each.name for each in bench.service.snapshot().status] == ["resident"]
    with pytest.raises(NotFound, match="is not on the model"):
        do(bench, rq.UnloadAdapter(name="good one"))
    assert tiny.scores(bench.service, [("good one", 1.0)]) == before


def test_the_last_adapter_can_leave_and_another_come(bench: Bench) -> None:
    plain = tiny.plain_scores(bench.base, None)
    do(bench, rq.UnloadAdapter(name="resident"))
    assert tiny.scores(bench.service, []) == pytest.approx(plain, rel=1e-5)
    assert tiny.scores(bench.service, [("resident", 1.0)]) != tiny.scores(bench.service, [])


def test_the_zip_for_download_is_the_adapter(bench: Bench, tmp_path: Path) -> None:
    added = do(bench, rq.LoadAdapter(source=str(bench.good))).adapter

    with zipfile.ZipFile(bench.service.pack_adapter("good one")) as archive:
        archive.extractall(tmp_path / "out")

    folder = bench.service.library.folder(added.id)
    packed = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert packed == {path.name: path.read_bytes() for path in folder.iterdir()}
    expected = tiny.plain_scores(bench.base, bench.good)
    assert tiny.plain_scores(bench.base, tmp_path / "out") == pytest.approx(expected, rel=1e-5)


# -- what is said of adapters --------------------------------------------------------------------


def test_the_table_is_what_peft_says(bench: Bench) -> None:
    do(bench, rq.LoadAdapter(source=str(bench.good)))
    do(bench, rq.SetActive(adapters=[("resident", 0.5), ("good one", -2.0)]))
    snapshot = bench.service.snapshot()
    told = session_of(bench).peft.get_model_status()

    by_id = {info.id: info.name for info in bench.service.library.all()}
    assert [each.name for each in snapshot.status] == [by_id[id] for id in told.available_adapters]
    active = {each.name for each in snapshot.status if each.active}
    assert active == {by_id[id] for id in told.active_adapters}
    assert {each.name: each.strength for each in snapshot.status} == {
        "resident": 0.5,
        "good one": -2.0,
    }
    assert not any(each.trainable or each.merged for each in snapshot.status)
    size = sum(t.numel() for t in load_file(bench.good / WEIGHTS).values()) * 4
    assert {each.memory_bytes for each in snapshot.status if each.name == "good one"} == {size}
    assert snapshot.irregular == ""


@pytest.mark.parametrize("part", ["active", "enabled", "merged", "learning of resident"])
def test_a_layer_that_was_tampered_with_is_reported(bench: Bench, part: str) -> None:
    session = session_of(bench)
    layer = next(iter(session.adapted().values()))
    adapter_id = bench.service.library.get("resident").id
    if part == "active":
        layer._active_adapter = []
    elif part == "enabled":
        layer._disable_adapters = True
    elif part == "merged":
        layer.merged_adapters.append(adapter_id)
    else:
        layer.lora_A[adapter_id].weight.requires_grad_(True)
    try:
        _, irregular = session.status()
    finally:
        layer.merged_adapters.clear()
        session.settle()

    assert part in irregular
    assert session.status()[1] == ""


def test_norms_and_effective_ranks_are_those_of_the_whole_changes(bench: Bench) -> None:
    model = PeftModel.from_pretrained(tiny.fresh(bench.base), bench.good)
    report = do(bench, rq.InspectAdapter(source=str(bench.good)))

    assert len(report.layers) == 14
    for each in report.layers:
        module: Any = model.get_submodule(f"base_model.model.{each.layer}")
        change = module.get_delta_weight("default").detach().double()
        base = module.get_base_layer().weight.detach().double()
        shares = torch.linalg.svdvals(change).square() / change.square().sum()
        shares = shares[shares > 1e-12]
        assert each.norm == pytest.approx(float(change.norm()), rel=1e-5)
        assert each.relative == pytest.approx(float(change.norm() / base.norm()), rel=1e-5)
        expected = float(torch.exp(-(shares * shares.log()).sum()))
        assert each.effective_rank == pytest.approx(expected, rel=1e-4)
        assert each.rank == (2 if "v_proj" in each.layer else 4)
    assert report.ranks == [2, 4]


def test_effective_rank_counts_equal_singular_values() -> None:
    assert inspection.effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3)
    assert inspection.effective_rank(torch.zeros(4)) == 0


def test_an_adapter_of_another_base_of_the_same_shape_is_added_with_a_warning(
    bench: Bench, tmp_path: Path
) -> None:
    other = tiny.write_base(tmp_path / "another", layers=2, seed=7)
    folder = tiny.write_adapter(tmp_path / "stranger", other, tiny.lora(r=2))

    report = do(bench, rq.InspectAdapter(source=str(folder)))
    added = do(bench, rq.LoadAdapter(source=str(folder)))

    assert (report.verdict, report.base_match) == ("warning", "unknown")
    assert "made for another; the shapes fit" in report.reasons[0].what
    assert added.notes == [report.reasons[0].what]


def test_an_unknown_adapter_is_said(bench: Bench) -> None:
    requests = (
        rq.DeleteAdapter(name="ghost"),
        rq.UnloadAdapter(name="ghost"),
        rq.RestoreAdapter(name="ghost"),
        rq.RenameAdapter(name="ghost", new_name="spirit"),
        rq.LoadAdapter(source="library:ghost"),
    )
    for request in requests:
        with pytest.raises(WorkbenchError, match="called 'ghost'"):
            do(bench, request)
