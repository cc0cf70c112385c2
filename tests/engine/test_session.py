"""Switching and placing adapters directly, against what plain PEFT does with the same files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, PeftModel

from backend import Service
from backend import requests as rq
from backend.engine.methods import fast_load, peft_io
from backend.library import new_adapter_id
from tests.engine import tiny

Mixed = list[tuple[str, float]]
KINDS: dict[str, LoraConfig] = {
    "plain": tiny.lora(r=4, lora_alpha=6),
    "small": tiny.lora(r=1, lora_alpha=3, target_modules=["q_proj", "down_proj"]),
    "rs": tiny.lora(r=8, lora_alpha=5, use_rslora=True),
    "patterned": tiny.lora(
        r=4, rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 6}, alpha_pattern={"v_proj": 20}
    ),
    "rs patterned": tiny.lora(r=4, use_rslora=True, rank_pattern={"k_proj": 9}),
    "one layer": tiny.lora(r=4, target_modules=["model.layers.1.self_attn.o_proj"]),
    "dora": tiny.lora(r=4, use_dora=True, target_modules=["q_proj", "v_proj"]),
}
VARIANTS: list[Mixed] = [
    [],
    *([(name, 1.0)] for name in KINDS),
    [("plain", 0.3)],
    [("rs", -1.7)],
    [("patterned", 0.0)],
    [("plain", 1.0), ("small", 1.0)],
    [("rs", 0.5), ("patterned", -0.5), ("one layer", 2.0)],
    [("rs patterned", 0.7), ("dora", 1.0)],
    [("plain", 0.25), ("small", 0.25), ("rs", 0.25), ("rs patterned", 0.25)],
]


class Bench(NamedTuple):
    service: Service
    base: Path
    plain: PeftModel


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("session")
    base = tiny.write_base(root / "base", layers=2)
    with tiny.start_service(root / "workspace", base) as service:
        ids = {
            name: tiny.enlist(service, name, config, seed=number).id
            for number, (name, config) in enumerate(KINDS.items())
        }
        folders = {name: service.library.folder(id) for name, id in ids.items()}
        model = PeftModel.from_pretrained(tiny.fresh(base), folders["plain"], adapter_name="plain")
        for name in list(KINDS)[1:]:
            model.load_adapter(folders[name], adapter_name=name.replace(" ", "_"))
        yield Bench(service, base, model.eval())


def by_peft(model: PeftModel, variant: Mixed) -> list[float]:
    """Score with plain PEFT: `set_adapter` and `set_scale`."""
    wanted = {name.replace(" ", "_"): strength for name, strength in variant}
    model.base_model.set_adapter(list(wanted), inference_mode=True)
    layers = peft_io.adapted_layers(model.base_model.model).values()
    for layer in layers:
        for name, strength in wanted.items():
            layer.set_scale(name, strength)
    try:
        return scored(model)
    finally:
        for layer in layers:
            for name in wanted:
                layer.set_scale(name, 1.0)


def scored(model: Any) -> list[float]:
    tokenizer = TOKENIZER
    found = []
    for text in tiny.TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            chances = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        found.append(chances.gather(1, ids[0, 1:, None]).sum().item())
    return found


TOKENIZER = tiny.AutoTokenizer.from_pretrained(tiny.STARTER)


def session_of(service: Service) -> Any:
    return service.engine._runtime._engine.session  # type: ignore[union-attr]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_variant_answers_as_in_plain_peft(bench: Bench, variant: Mixed) -> None:
    found = tiny.scores(bench.service, variant)
    assert found == pytest.approx(by_peft(bench.plain, variant), rel=1e-5)


def test_the_oracle_tells_its_variants_apart(bench: Bench) -> None:
    found = [by_peft(bench.plain, variant)[0] for variant in VARIANTS]
    apart = len({round(value, 3) for value in found})
    assert apart == len(VARIANTS) - 1  # a strength of zero is the base


def test_switching_to_and_fro_gives_the_same_bits(bench: Bench) -> None:
    before = [tiny.scores(bench.service, variant) for variant in VARIANTS]
    for variant in reversed(VARIANTS):
        bench.service.start(rq.SetActive(adapters=variant)).result(timeout=60)
        assert bench.service.snapshot().irregular == ""
    assert [tiny.scores(bench.service, variant) for variant in VARIANTS] == before


@pytest.mark.parametrize("order", [("small", "plain"), ("one layer", "rs"), ("dora", "patterned")])
def test_adapters_on_other_layers_can_be_added_later(
    bench: Bench, tmp_path: Path, order: tuple[str, str]
) -> None:
    """The first adapter covers fewer layers than those that come after it."""
    with tiny.start_service(tmp_path / "w", bench.base) as service:
        for number, name in enumerate((*order, "late")):
            config = KINDS.get(name, tiny.lora(r=3, lora_alpha=9))
            tiny.enlist(service, name, config, seed=list(KINDS).index(name) if number < 2 else 40)
        for name in order:
            expected = by_peft(bench.plain, [(name, 1.0)])
            assert tiny.scores(service, [(name, 1.0)]) == pytest.approx(expected, rel=1e-5)
        late = service.library.folder(service.library.get("late").id)
        expected = tiny.plain_scores(bench.base, late)
        assert tiny.scores(service, [("late", 1.0)]) == pytest.approx(expected, rel=1e-5)
        both: Mixed = [(name, 0.5 if name != "dora" else 1.0) for name in order]
        found = tiny.scores(service, both)
        assert found == pytest.approx(by_peft(bench.plain, both), rel=1e-5)


def test_placing_is_what_plain_loading_does(bench: Bench) -> None:
    """Every part of each layer, not only the answers."""
    session = session_of(bench.service)
    tiny.scores(bench.service, [("plain", 1.0)])
    placed, loaded = new_adapter_id(), new_adapter_id()
    folder = session.library.folder(session.library.get("patterned").id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peft_io, "load_plainly", None)
        session.load_folder(folder, placed)
    try:
        session.load_folder(folder, loaded, plainly=True)
        for layer in session.adapted().values():
            for part in ("r", "lora_alpha", "scaling", "use_rslora", "use_dora", "lora_bias"):
                values = getattr(layer, part)
                assert values.get(placed) == values.get(loaded), part
            for part in ("lora_A", "lora_B"):
                first, second = (getattr(layer, part)[id].weight for id in (placed, loaded))
                assert torch.equal(first, second)
                assert (first.dtype, first.requires_grad) == (second.dtype, False)
        assert session.peft.get_model_status().requires_grad[placed] is False
    finally:
        session.drop(placed)
        session.drop(loaded)


def test_a_failed_placing_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(bench.service)
    before = tiny.scores(bench.service, [("plain", 1.0)])
    real, calls = fast_load._frozen_linear, iter(range(99))

    def fail(weight: torch.Tensor, device: torch.device) -> torch.nn.Linear:
        if next(calls) == 9:
            raise RuntimeError("out of memory")
        return real(weight, device)

    folder = session.library.folder(session.library.get("rs").id)
    with monkeypatch.context() as patch:
        patch.setattr(fast_load, "_frozen_linear", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            session.load_folder(folder, "ad_broken")

    assert not session.is_loaded("ad_broken")
    assert not any("ad_broken" in name for name, _ in session.model.named_modules())
    assert not any("ad_broken" in layer.scaling for layer in session.adapted().values())
    assert session.status()[1] == ""
    assert tiny.scores(bench.service, [("plain", 1.0)]) == before


def test_many_adapters_stay_apart(bench: Bench, tmp_path: Path) -> None:
    with tiny.start_service(tmp_path / "w", bench.base) as service:
        sources = [
            tiny.enlist(service, f"number {i}", tiny.lora(r=1 + i % 3), seed=i) for i in range(3)
        ]
        first = [tiny.scores(service, [(info.name, 1.0)]) for info in sources]
        session = session_of(service)
        for number in range(27):
            folder = service.library.folder(sources[number % 3].id)
            session.load_folder(folder, f"ad_{number:06x}")
        assert len(session.peft.peft_config) == 30
        assert [tiny.scores(service, [(info.name, 1.0)]) for info in sources] == first
        for number in (0, 13, 26):
            with session.using_ids([(f"ad_{number:06x}", 1.0)]):
                assert scored(session.model) == pytest.approx(first[number % 3], rel=1e-6)
        session.drop("ad_00000d")
        assert [tiny.scores(service, [(info.name, 1.0)]) for info in sources] == first


def test_training_one_leaves_the_others_bit_for_bit(bench: Bench, tmp_path: Path) -> None:
    service = bench.service
    before = [tiny.scores(service, variant) for variant in VARIANTS]
    active: Mixed = [("rs", 0.5), ("small", -1.0)]
    service.start(rq.SetActive(adapters=active)).result(timeout=60)

    train = rq.Train(
        name="fresh", data="starter:pirate", max_steps=2, tokens_per_step=128, precision="fp32"
    )
    service.start(train).result(timeout=120)

    assert service.snapshot().active == active
    assert [tiny.scores(service, variant) for variant in VARIANTS] == before
    folder = service.library.folder(service.library.get("fresh").id)
    expected = tiny.plain_scores(bench.base, folder)
    assert tiny.scores(service, [("fresh", 1.0)]) == pytest.approx(expected, rel=1e-5)
