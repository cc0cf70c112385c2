"""Adapters of a text part under the names that other programs give it, and adapters of more."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend import Service
from backend import requests as rq
from backend.engine.methods.file_validation import scan
from backend.engine.methods.peft_io import configure
from backend.engine.models.linear_layers import linear_layers
from tests.engine import tiny
from tests.engine.text_parts import composite

PREFIX = "base_model.model."
OWN = "model.language_model.layers."
WEIGHTS = "adapter_model.safetensors"
TEXT = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class Bench(NamedTuple):
    service: Service
    base: Path
    twin: Path
    adapter: Path
    """Made by plain PEFT for the language model of `base`."""
    of_twin: Path
    """Made by plain PEFT for `twin`, the language model alone."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("prefixes")
    model: Any = composite.gemma3()
    base = composite.write(root / "base", model)
    twin: Any = AutoModelForCausalLM.from_config(model.config.text_config)
    twin.model.load_state_dict(model.model.language_model.state_dict())
    twin.save_pretrained(root / "twin")
    AutoTokenizer.from_pretrained(base).save_pretrained(root / "twin")
    config = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=TEXT)
    adapter = tiny.write_adapter(root / "of the whole", base, config)
    of_twin = tiny.write_adapter(root / "of the twin", root / "twin", tiny.lora(r=3))
    with tiny.start_service(root / "workspace", base) as service:
        yield Bench(service, base, root / "twin", adapter, of_twin)


def renamed(source: Path, folder: Path, change: Callable[[str], str]) -> Path:
    shutil.copytree(source, folder)
    save_file({change(k): t for k, t in load_file(source / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


def do(service: Service, request: rq.Request) -> Any:
    return service.start(request).result(timeout=60)


NAMES = {
    "text alone": PREFIX + "model.layers.",
    "older files": PREFIX + "language_model.model.layers.",
    "without a head": PREFIX + "language_model.layers.",
    "no prefix of PEFT": OWN,
    "no prefix of PEFT, older": "language_model.model.layers.",
}


@pytest.mark.parametrize("start", NAMES.values(), ids=NAMES)
def test_layers_under_another_prefix_are_found_and_it_says_so(
    bench: Bench, tmp_path: Path, start: str
) -> None:
    source = renamed(
        bench.adapter, tmp_path / "other", lambda key: key.replace(PREFIX + OWN, start)
    )
    name = f"renamed {list(NAMES.values()).index(start)}"

    added = do(bench.service, rq.LoadAdapter(source=str(source), name=name))

    assert any("in its file, and under" in n or "was missing" in n for n in added.notes)
    expected = tiny.plain_scores(bench.base, bench.adapter)
    assert tiny.scores(bench.service, [(name, 1.0)]) == pytest.approx(expected, rel=1e-5)
    kept = bench.service.library.folder(added.adapter.id)
    assert tiny.plain_scores(bench.base, kept) == pytest.approx(expected, rel=1e-5)


def test_an_adapter_of_the_language_model_alone_fits_the_whole_model(bench: Bench) -> None:
    added = do(bench.service, rq.LoadAdapter(source=str(bench.of_twin), name="of the twin"))

    assert any("under 'model.' in its file" in note for note in added.notes)
    expected = tiny.plain_scores(bench.twin, bench.of_twin)
    assert tiny.scores(bench.service, [("of the twin", 1.0)]) == pytest.approx(expected, rel=1e-5)


def test_an_adapter_of_the_whole_model_fits_the_language_model_alone(
    bench: Bench, tmp_path: Path
) -> None:
    with tiny.start_service(tmp_path / "workspace", bench.twin) as service:
        added = do(service, rq.LoadAdapter(source=str(bench.adapter), name="of the whole"))

        assert any("under 'model.language_model.' in its file" in note for note in added.notes)
        expected = tiny.plain_scores(bench.base, bench.adapter)
        assert tiny.scores(service, [("of the whole", 1.0)]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("of_the_twin", [False, True], ids=["whole model", "language model alone"])
def test_an_adapter_that_also_changes_the_tower_is_refused_by_its_name(
    bench: Bench, tmp_path: Path, of_the_twin: bool
) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    source = tiny.write_adapter(tmp_path / "of everything", bench.base, config)
    if not of_the_twin:
        report = do(bench.service, rq.InspectAdapter(source=str(source)))
    else:
        with tiny.start_service(tmp_path / "workspace", bench.twin) as service:
            report = do(service, rq.InspectAdapter(source=str(source)))

    assert report.verdict == "cannot"
    assert "also changes the vision tower, which text does not pass through" in (
        report.reasons[0].what
    )


def test_one_layer_under_another_name_is_not_guessed(bench: Bench, tmp_path: Path) -> None:
    other = PREFIX + "model.layers.0"
    source = renamed(
        bench.adapter, tmp_path / "mixed", lambda key: key.replace(PREFIX + OWN + "0", other)
    )

    report = do(bench.service, rq.InspectAdapter(source=str(source)))

    assert report.verdict == "cannot"
    assert "there is no model.layers.0" in report.reasons[0].what


def test_copies_of_the_embeddings_under_another_prefix_are_left_out(
    bench: Bench, tmp_path: Path
) -> None:
    source = renamed(bench.adapter, tmp_path / "with copies", lambda key: key)
    tensors = load_file(source / WEIGHTS)
    model = tiny.fresh(bench.base)
    copy = model.get_input_embeddings().weight.detach().clone()
    tensors[f"{PREFIX}model.language_model.embed_tokens.weight"] = copy
    save_file(tensors, source / WEIGHTS)

    added = do(bench.service, rq.LoadAdapter(source=str(source), name="with copies"))

    assert any("copies of the base's weights" in note for note in added.notes)


def test_long_lists_of_targets_still_miss_the_tower_when_peft_has_shortened_them(
    tmp_path: Path,
) -> None:
    """PEFT 0.21.2 shortens lists of more than 20 names when it applies them."""
    base = composite.write(tmp_path / "base", composite.gemma3(layers=9))
    model = tiny.fresh(base)
    layers = linear_layers(model)
    peft: Any = get_peft_model(model, configure(rq.Lora(rank=2), layers, str(base)))
    peft.save_pretrained(tmp_path / "saved", save_embedding_layers=False)

    again: Any = PeftModel.from_pretrained(tiny.fresh(base), tmp_path / "saved")

    adapted = {n.split(".lora_A")[0] for n, _ in again.named_parameters() if ".lora_A." in n}
    assert {name.removeprefix(PREFIX) for name in adapted} == {layer.name for layer in layers}
    assert len(layers) == 9 * 7
    assert scan(tmp_path / "saved", layers).config.target_modules


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_an_adapter_of_text_loads_though_peft_put_it_on_the_vision_tower_too(
    bench: Bench, tmp_path: Path, targets: list[str] | str
):
    """Trained on text, its factors for the tower are zero; plain PEFT is the oracle."""
    config = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=targets)
    whole = tiny.write_adapter(tmp_path / "whole", bench.base, config)
    tensors = load_file(whole / WEIGHTS)
    tower = [key for key in tensors if "language_model" not in key]
    assert tower
    zero = {key: torch.zeros_like(tensors[key]) for key in tower if ".lora_B." in key}
    save_file({**tensors, **zero}, whole / WEIGHTS)
    name = f"text {len(targets)}"
    added = do(bench.service, rq.LoadAdapter(source=str(whole), name=name))
    assert any("text never trained them" in note for note in added.notes)
    assert tiny.scores(bench.service, [(name, 1.0)]) == pytest.approx(
        tiny.plain_scores(bench.base, whole), rel=1e-5
    )
    do(bench.service, rq.DeleteAdapter(name=name))
