"""Plain LoRA out of other kinds and ranks; plain PEFT in a fresh model is the oracle."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel

from backend import Service
from backend import requests as rq
from backend import results as rs
from backend.engine.methods import plain_lora
from backend.errors import InvalidRequest, NotFound, Unsupported, VerificationFailed
from tests.engine.tiny import (
    enlist,
    fresh,
    layer_names,
    lora,
    plain_scores,
    scores,
    start_service,
    write_adapter,
    write_base,
)

RESIDUAL = {
    "pissa": lora(r=4, lora_alpha=6, init_lora_weights="pissa"),
    "olora": lora(r=4, lora_alpha=2, init_lora_weights="olora"),
    "rs-pissa": lora(r=4, lora_alpha=4, init_lora_weights="pissa", use_rslora=True),
    "patterned": lora(
        r=4,
        lora_alpha=4,
        init_lora_weights="pissa",
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 9},
        target_modules=["q_proj", "v_proj"],
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def service(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with start_service(tmp_path_factory.mktemp("workspace"), base) as service:
        yield service


def convert(service: Service, name: str, new_name: str, rank: int | None = None) -> rs.Converted:
    request = rq.ConvertAdapter(name=name, new_name=new_name, rank=rank)
    result: rs.Converted = service.start(request).result(timeout=120)
    return result


def folder(service: Service, info: rs.AdapterInfo) -> Path:
    return service.library.folder(info.id)


def change_by_merging(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Return W' - W of each layer as PEFT's own merge makes it."""
    names = layer_names(base)
    before, after = fresh(base), PeftModel.from_pretrained(fresh(base), adapter).merge_and_unload()
    return {
        n: (after.get_submodule(n).weight - before.get_submodule(n).weight).detach() for n in names
    }


# -- exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RESIDUAL)
def test_what_takes_from_the_base_becomes_plain_lora_exactly(
    service: Service, base: Path, kind: str
) -> None:
    before = scores(service, [])
    source = enlist(service, f"{kind} source", RESIDUAL[kind])

    done = convert(service, f"{kind} source", f"{kind} plain")

    expected = plain_scores(base, folder(service, source))
    assert done.rank == 8
    assert done.relative_error < 1e-4  # of the change; fp32 rounding of the weight itself
    assert scores(service, [(f"{kind} plain", 1.0)]) == pytest.approx(expected, rel=1e-5)
    assert plain_scores(base, folder(service, done.adapter)) == pytest.approx(expected, rel=1e-5)
    assert scores(service, []) == before  # the base was not touched


def test_a_converted_adapter_is_plain_and_says_where_it_comes_from(service: Service) -> None:
    enlist(service, "origin", RESIDUAL["pissa"])
    info = convert(service, "origin", "origin plain").adapter

    config = PeftConfig.from_pretrained(str(folder(service, info)))
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha) == (8, 8)
    assert config.init_lora_weights is True
    assert (config.rank_pattern, config.alpha_pattern, config.use_dora) == ({}, {}, False)
    assert (info.origin, info.method, info.rank) == ("converted", "LoRA", 8)
    assert "origin (LoRA)" in info.recipe
    assert info.max_difference is not None
    assert info.max_difference <= 1e-5
    assert service.library.get("origin plain") == info


def test_rslora_becomes_plain_lora_of_the_same_rank(service: Service, base: Path) -> None:
    source = enlist(service, "rs", lora(r=16, lora_alpha=8, use_rslora=True))

    done = convert(service, "rs", "rs plain")

    assert (done.rank, done.relative_error) == (16, 0.0)
    assert plain_scores(base, folder(service, done.adapter)) == pytest.approx(
        plain_scores(base, folder(service, source)), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["pissa", "olora", "patterned"])
def test_a_foreign_folder_is_baked_without_a_session(base: Path, tmp_path: Path, kind: str) -> None:
    foreign = write_adapter(tmp_path / "foreign", base, RESIDUAL[kind])
    model = fresh(base)
    weights = {n: p.clone() for n, p in model.named_parameters()}

    baked = plain_lora.bake(foreign, model)
    (tmp_path / "plain").mkdir()
    baked.write(tmp_path / "plain")

    assert plain_scores(base, tmp_path / "plain") == pytest.approx(
        plain_scores(base, foreign), rel=1e-5
    )
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())
    assert baked.rank == 8


def test_baking_finds_the_base_under_adapters_that_are_on_it(base: Path, tmp_path: Path) -> None:
    foreign = write_adapter(tmp_path / "foreign", base, RESIDUAL["pissa"])
    other = write_adapter(tmp_path / "other", base, lora(r=4), seed=3)
    wrapped = PeftModel.from_pretrained(fresh(base), other)

    alone = plain_lora.bake(foreign, fresh(base))
    beneath = plain_lora.bake(foreign, wrapped.get_base_model())

    assert all(torch.equal(alone.tensors[key], beneath.tensors[key]) for key in alone.tensors)


@pytest.mark.parametrize("start", ["pissa_niter_4"])
def test_a_start_by_chance_is_refused(base: Path, tmp_path: Path, start: str) -> None:
    foreign = write_adapter(tmp_path / "foreign", base, lora(r=4, init_lora_weights=start))

    with pytest.raises(Unsupported, match="cannot be recomputed"):
        plain_lora.bake(foreign, fresh(base))


# -- approximate ---------------------------------------------------------------------------------


def test_dora_at_full_rank_answers_like_the_original(service: Service, base: Path) -> None:
    source = enlist(service, "dora", lora(r=4, use_dora=True))

    done = convert(service, "dora", "dora plain", rank=64)

    assert done.relative_error < 1e-5
    assert scores(service, [("dora plain", 1.0)]) == pytest.approx(
        plain_scores(base, folder(service, source)), rel=1e-5
    )


def test_the_error_of_a_cut_is_the_distance_of_the_weight_changes(
    service: Service, base: Path
) -> None:
    source = enlist(service, "cut", lora(r=4, use_dora=True))

    done = convert(service, "cut", "cut plain", rank=6)

    wanted = change_by_merging(base, folder(service, source))
    made = change_by_merging(base, folder(service, done.adapter))
    lost = {n: (made[n] - wanted[n]).norm() for n in wanted}
    for name, error in done.relative_error_per_layer.items():
        assert error == pytest.approx(float(lost[name] / wanted[name].norm()), abs=1e-4)
    whole = torch.stack([change.norm() for change in wanted.values()]).norm()
    overall = float(torch.stack(list(lost.values())).norm() / whole)
    assert done.relative_error == pytest.approx(overall, abs=1e-4)
    assert 0.01 < overall < 1


def test_a_higher_rank_is_closer(service: Service) -> None:
    enlist(service, "closer", lora(r=4, use_dora=True))
    errors = [
        convert(service, "closer", f"closer {rank}", rank).relative_error for rank in (2, 8, 32)
    ]

    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


def test_without_a_rank_dora_gets_one_that_is_close(service: Service) -> None:
    enlist(service, "free", lora(r=4, use_dora=True))

    done = convert(service, "free", "free plain")

    assert done.relative_error <= 0.05
    assert f"rank {done.rank}" in done.adapter.recipe


def test_lora_is_resized_to_the_best_of_its_rank(service: Service, base: Path) -> None:
    source = enlist(service, "large", lora(r=8, lora_alpha=16))

    done = convert(service, "large", "small", rank=3)

    change = change_by_merging(base, folder(service, source))
    best = {n: torch.linalg.svdvals(c.double())[3:].norm() / c.norm() for n, c in change.items()}
    assert done.rank == 3
    for name, error in done.relative_error_per_layer.items():
        assert error == pytest.approx(float(best[name]), abs=1e-4)


def test_lora_grows_to_a_larger_rank_exactly(service: Service, base: Path) -> None:
    source = enlist(service, "narrow", lora(r=2))

    done = convert(service, "narrow", "broad", rank=10)

    assert (done.rank, done.relative_error) == (10, 0.0)
    assert plain_scores(base, folder(service, done.adapter)) == pytest.approx(
        plain_scores(base, folder(service, source)), rel=1e-5
    )


# -- whole or not at all -------------------------------------------------------------------------


def test_what_cannot_be_converted_is_refused(service: Service) -> None:
    enlist(service, "taken", lora(r=2))
    with pytest.raises(NotFound):
        convert(service, "nobody", "somebody")
    with pytest.raises(InvalidRequest, match="already an adapter"):
        convert(service, "taken", "taken")
    with pytest.raises(InvalidRequest, match="Rank 65"):
        convert(service, "taken", "too large", rank=65)


def test_a_failed_conversion_leaves_nothing_behind(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    enlist(service, "fails", lora(r=2))
    service.start(rq.SetActive(adapters=[("fails", 1.0)])).result(timeout=60)
    names = [info.name for info in service.library.all()]
    folders = sorted(service.settings.adapters_dir.iterdir())
    monkeypatch.setattr("backend.engine.methods.peft_io.same_weights", lambda *arguments: False)

    with pytest.raises(VerificationFailed):
        convert(service, "fails", "never")

    assert [info.name for info in service.library.all()] == names
    assert sorted(service.settings.adapters_dir.iterdir()) == folders
    assert service.snapshot().active == [("fails", 1.0)]
    service.start(rq.SetActive(adapters=[])).result(timeout=60)


def test_a_converted_adapter_shares_the_slot_that_its_original_could_not(
    service: Service, base: Path
) -> None:
    source = enlist(service, "odd", RESIDUAL["olora"])
    convert(service, "odd", "even")
    enlist(service, "mate", lora(r=2), seed=4)

    service.start(rq.PrepareHotswap(adapters=["even", "mate"], compile=False)).result(timeout=120)
    swapped = service.start(rq.Hotswap(adapter="even")).result(timeout=60)
    inside = scores(service, [("even", 1.0)])
    service.start(rq.EndHotswap()).result(timeout=60)

    assert swapped.max_difference <= 1e-5
    assert inside == pytest.approx(plain_scores(base, folder(service, source)), rel=1e-5)
