"""Adapters that plain PEFT made on mixtures: loaded and switched as PEFT itself computes."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from backend import Service
from backend import requests as rq
from backend.engine.hotswap.slot_layers import SlotLayer
from backend.engine.methods import file_validation
from backend.engine.methods.adaptable import adaptable
from backend.errors import ModelError, Unsupported, WorkbenchError
from tests.architectures.tiny_models import tiny_model, write_model
from tests.engine import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*rank_pattern", "ignore:.*alpha_pattern")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, **options})


KINDS = {
    "plain": lora(target_modules=["o_proj"]),
    "all linear": lora(target_modules="all-linear"),  # PEFT takes the experts in, and the router
    "experts": lora(target_modules=["o_proj"], target_parameters=BOTH),
    "patterns": lora(
        target_modules=["o_proj"],
        target_parameters=BOTH,
        rank_pattern={"experts.gate_up_proj": 1},
        alpha_pattern={"down_proj": 3},
    ),
    "one": lora(target_modules=[], target_parameters=["mlp.experts.gate_up_proj"], use_rslora=True),
}


class Bench(NamedTuple):
    service: Service
    base: Path
    folders: dict[str, Path]
    expected: dict[str, list[float]]


@pytest.fixture(scope="module", params=["mixtral", "deepseek_v3"])
def bench(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A mixture with adapters that plain PEFT made, and how plain PEFT scores with each."""
    root = tmp_path_factory.mktemp(request.param)
    base = write_model(root / "base", request.param)
    folders = {name: tiny.write_adapter(root / name, base, KINDS[name]) for name in KINDS}
    expected = {name: tiny.plain_scores(base, folder) for name, folder in folders.items()}
    with tiny.start_service(root / "workspace", base) as service:
        for name, folder in folders.items():
            service.start(rq.LoadAdapter(source=str(folder), name=name)).result(timeout=60)
        yield Bench(service, base, folders, expected)


def scores(service: Service, *variants: rq.Variant) -> list[list[float]]:
    request = rq.Score(texts=list(tiny.TEXTS), variants=list(variants))
    found: list[list[float]] = service.start(request).result(timeout=60).scores
    return found


def test_each_computes_as_plain_peft_in_any_order(bench: Bench) -> None:
    names = [*bench.expected, *reversed(bench.expected)]

    for name in names:
        found, alone = scores(bench.service, [(name, 1.0)], [])
        assert found == pytest.approx(bench.expected[name], rel=1e-6), name
        assert alone == pytest.approx(tiny.plain_scores(bench.base, None), rel=1e-6)


def test_one_request_exchanges_those_that_cannot_be_together(bench: Bench) -> None:
    found = scores(bench.service, *([(name, 1.0)] for name in bench.expected))

    for name, each in zip(bench.expected, found, strict=True):
        assert each == pytest.approx(bench.expected[name], rel=1e-6), name


def test_the_active_set_stays_while_others_are_used(bench: Bench) -> None:
    service = bench.service
    service.start(rq.SetActive(adapters=[("one", 0.5)])).result(timeout=60)

    scores(service, [("experts", 1.0)], [("all linear", 1.0)])

    snapshot = service.snapshot()
    assert [(each.name, each.strength) for each in snapshot.status if each.active] == [("one", 0.5)]
    assert snapshot.irregular == ""
    service.start(rq.SetActive(adapters=[])).result(timeout=60)


def test_two_that_peft_cannot_keep_together_are_refused(bench: Bench) -> None:
    before = scores(bench.service, [("experts", 1.0)])

    with pytest.raises(Unsupported) as caught:
        scores(bench.service, [("experts", 0.5), ("one", 0.5)])

    assert str(caught.value) == (
        "'experts' and 'one' change different parameters of experts, and PEFT cannot keep both on "
        "a model at once. Use one of them at a time."
    )
    assert scores(bench.service, [("experts", 1.0)]) == before


def test_two_of_the_same_parameters_add_up(bench: Bench) -> None:
    found = scores(
        bench.service, [("experts", 1.0), ("patterns", 1.0)], [("plain", 1.0), ("experts", 1.0)]
    )

    assert found[0] != pytest.approx(bench.expected["experts"], rel=1e-4)
    assert found[1] != pytest.approx(bench.expected["experts"], rel=1e-4)


def test_answers_side_by_side_equal_those_alone(bench: Bench) -> None:
    def compare(variants: list[rq.Variant]) -> list[list[str]]:
        request = rq.Compare(prompts=["Hello", "The cat"], variants=variants, max_new_tokens=4)
        answers: list[list[str]] = bench.service.start(request).result(timeout=60).answers
        return answers

    variants: list[rq.Variant] = [[(name, 1.0)] for name in bench.expected]

    assert compare(variants) == [compare([variant])[0] for variant in variants]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (rq.Combine(name="x", sources=[("experts", 1.0)], method="cat"), "which PEFT cannot blend"),
        (rq.ConvertAdapter(name="experts", new_name="y"), "which plain LoRA on layers cannot"),
        (rq.PrepareHotswap(adapters=["experts"]), "which a slot cannot hold"),
        (rq.Similarity(names=["experts", "plain"]), "which are not compared"),
    ],
)
def test_only_what_peft_cannot_do_is_refused(bench: Bench, request_: Any, said: str) -> None:
    with pytest.raises(Unsupported, match=f"'experts' changes parameters of experts, {said}"):
        bench.service.start(request_).result(timeout=60)


def test_a_slot_of_plain_adapters_leaves_the_session_as_it_was(bench: Bench) -> None:
    service = bench.service
    service.start(rq.SetActive(adapters=[("experts", 1.0)])).result(timeout=60)

    service.start(rq.PrepareHotswap(adapters=["plain"], compile=False)).result(timeout=60)
    service.start(rq.EndHotswap()).result(timeout=60)

    assert service.snapshot().active == [("experts", 1.0)]
    found = scores(service, [("experts", 1.0)])[0]
    assert found == pytest.approx(bench.expected["experts"], rel=1e-6)
    service.start(rq.SetActive(adapters=[])).result(timeout=60)


def without(folder: Path, part: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({key: each for key, each in tensors.items() if part not in key}, folder / WEIGHTS)


def cut(folder: Path, part: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    found = {key: each[:-1] if part in key else each for key, each in tensors.items()}
    save_file({key: each.contiguous() for key, each in found.items()}, folder / WEIGHTS)


def said(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


def grown(folder: Path, key: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, key: torch.zeros(2, 2)}, folder / WEIGHTS)


INNER = "layers.0.mlp.experts.base_layer"
HARMED: dict[str, Callable[[Path], None]] = {
    "a part of an expert is missing": lambda folder: without(folder, f"{INNER}.lora_B"),
    "a parameter is missing": lambda folder: without(folder, INNER),
    "an expert is missing": lambda folder: cut(folder, f"{INNER}.lora_A"),
    "a parameter more": lambda folder: said(folder, target_parameters=[*BOTH, "gate.weight"]),
    "a parameter less": lambda folder: said(folder, target_parameters=BOTH[:1]),
    "no parameters at all": lambda folder: said(folder, target_parameters=None),
    "not a list": lambda folder: said(folder, target_parameters="experts.down_proj"),
    "not names": lambda folder: said(folder, target_parameters=["experts.(.*)+"]),
    "too many": lambda folder: said(folder, target_parameters=[f"p{n}" for n in range(2000)]),
    "dropout": lambda folder: said(folder, lora_dropout=0.1),
    "magnitudes": lambda folder: said(folder, use_dora=True),
    "weights of the base": lambda folder: grown(
        folder, "base_model.model.model.layers.0.mlp.experts.gate_up_proj"
    ),
}


@pytest.mark.parametrize("harm", HARMED)
def test_what_does_not_fit_is_refused_before_it_is_loaded(
    tmp_path: Path, harm: str, mixtral_adapter: Path
) -> None:
    folder = shutil.copytree(mixtral_adapter, tmp_path / "harmed")
    targets = adaptable(tiny_model("mixtral"))
    assert file_validation.scan(folder, targets).fits

    HARMED[harm](folder)

    with pytest.raises((ModelError, Unsupported)) as caught:
        file_validation.scan(folder, targets)
    assert isinstance(caught.value, WorkbenchError)


@pytest.fixture(scope="module")
def mixtral_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("harmed")
    base = write_model(root / "base", "mixtral")
    return tiny.write_adapter(root / "experts", base, KINDS["experts"])


def test_a_slot_s_layer_shows_the_base_s_own_weight() -> None:
    """Hunyuan's router asks for its dtype (Transformers 5.23)."""
    base = torch.nn.Linear(4, 3)
    layer = SlotLayer(base, torch.zeros(1, 4), torch.zeros(3, 1), torch.tensor(1.0))

    assert layer.weight is base.weight
    assert layer.bias is base.bias
