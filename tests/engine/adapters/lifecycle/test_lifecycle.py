"""Adapters are renamed, deleted, restored and described as they are."""

import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from backend import Service
from backend import requests as rq
from backend.engine.adapters import inspection
from backend.errors import InvalidRequest, NotFound, WorkbenchError
from tests.engine import tiny
from tests.engine.adapters.lifecycle.conftest import WEIGHTS, Bench, do, session_of


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
    with pytest.raises(InvalidRequest, match="already an adapter called 'resident'"):
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
    with pytest.raises(NotFound, match="is not loaded"):
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


@pytest.mark.parametrize("part", ["active", "enabled", "merged", "requires_grad of resident"])
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
    assert "made for another. Its shapes fit" in report.reasons[0].what
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
