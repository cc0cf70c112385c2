"""Training on mixtures of experts: kept, read back by plain PEFT, merged, extended, exported."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoTokenizer

from backend import Service
from backend import requests as rq
from backend.engine.adapters import saving
from backend.engine.methods import peft_io
from backend.errors import ModelError, VerificationFailed
from backend.results import PreflightReport, RunResult
from tests.architectures.tiny_models import write_model
from tests.engine import tiny

QUICK: dict[str, Any] = {
    "data": "starter:pirate",
    "tokens_per_step": 128,
    "precision": "fp32",
    "max_steps": 2,
    "learning_rate": 0.02,
}


class Trained(NamedTuple):
    service: Service
    base: Path
    frozen: RunResult
    experts: RunResult


def train(service: Service, name: str, **fields: Any) -> RunResult:
    request = rq.Train(**{**QUICK, "name": name, **fields})
    run: RunResult = service.start(request).result(timeout=300)
    return run


def scores(service: Service, *names: str, strength: float = 1.0) -> list[list[float]]:
    request = rq.Score(texts=list(tiny.TEXTS), variants=[[(name, strength)] for name in names])
    found: list[list[float]] = service.start(request).result(timeout=120).scores
    return found


def read_by_peft(base: Path, run: RunResult) -> list[float]:
    return tiny.plain_scores(base, Path(run.adapter_path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Train one adapter with frozen experts, and one of the experts, on a tiny mixture."""
    root = tmp_path_factory.mktemp("mixture")
    base = write_model(root / "base", "deepseek_v3")
    with tiny.start_service(root / "workspace", base) as service:
        frozen = train(service, "frozen", adapter=rq.Lora(rank=2))
        experts = train(service, "experts", adapter=rq.Lora(rank=2, experts=True))
        yield Trained(service, base, frozen, experts)


def test_lists_say_which_of_them_trains_the_experts(trained: Trained) -> None:
    snapshot = trained.service.snapshot()

    assert {run.name: run.experts for run in snapshot.runs} == {"frozen": False, "experts": True}
    assert {each.name: each.by_parameter for each in snapshot.adapters} == {
        "frozen": False, "experts": True
    }  # fmt: skip


def test_plain_peft_reads_both_and_agrees(trained: Trained) -> None:
    ours = scores(trained.service, "frozen", "experts")

    assert ours[0] == pytest.approx(read_by_peft(trained.base, trained.frozen), rel=1e-6)
    assert ours[1] == pytest.approx(read_by_peft(trained.base, trained.experts), rel=1e-6)
    assert ours[0] != pytest.approx(tiny.plain_scores(trained.base, None), rel=1e-4)
    assert ours[1] != pytest.approx(ours[0], rel=1e-4)


def test_the_check_says_how_much_of_the_model_is_reached(trained: Trained) -> None:
    def check(experts: bool) -> PreflightReport:
        run = rq.Train(**{**QUICK, "name": "ahead", "adapter": rq.Lora(rank=2, experts=experts)})
        report = trained.service.start(rq.Preflight(train=run, measure=False)).result(timeout=60)
        assert isinstance(report, PreflightReport)
        return report

    frozen, reached = check(False), check(True)

    assert frozen.ready
    assert reached.ready
    assert frozen.notes[0].startswith("Experts stay frozen: the adapter reaches ")
    assert reached.notes[0].endswith(" of the model's parameters, experts included.")
    assert 0 < frozen.reached_share < reached.reached_share <= 1
    assert reached.trainable_parameters == trained.service.library.get("experts").parameters
    assert reached.memory_bytes > frozen.memory_bytes


def test_its_strength_is_that_of_plain_peft(trained: Trained) -> None:
    model = PeftModel.from_pretrained(tiny.fresh(trained.base), trained.experts.adapter_path).eval()
    for layer in (each for each in model.modules() if isinstance(each, LoraLayer)):
        layer.set_scale("default", 0.5)
    tokenizer = AutoTokenizer.from_pretrained(trained.base)
    ids = tokenizer(tiny.TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        chances = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
    plain = chances.gather(1, ids[0, 1:, None]).sum().item()

    half = scores(trained.service, "experts", strength=0.5)[0]

    assert half[0] == pytest.approx(plain, rel=1e-6)


def test_answers_side_by_side_equal_those_alone(trained: Trained) -> None:
    """Latent attention has layers whose input has a dimension for heads."""

    def compare(*variants: rq.Variant) -> list[list[str]]:
        request = rq.Compare(
            prompts=["Hello!", "What is a cat?"], variants=list(variants), max_new_tokens=6
        )
        answers: list[list[str]] = trained.service.start(request).result(timeout=60).answers
        return answers

    variants: list[rq.Variant] = [[("frozen", 1.0)], [], [("experts", 1.0)]]

    assert compare(*variants) == [compare(variant)[0] for variant in variants]


def test_a_merge_equals_the_adapter_and_loads_plainly(trained: Trained, tmp_path: Path) -> None:
    request = rq.Merge(variant=[("experts", 1.0)], destination=str(tmp_path / "merged"))

    merged = trained.service.start(request).result(timeout=300)

    assert merged.max_difference < 1e-4
    expected = read_by_peft(trained.base, trained.experts)
    assert tiny.plain_scores(tmp_path / "merged", None) == pytest.approx(expected, rel=1e-5)


def test_a_copy_of_it_is_plain_peft(trained: Trained, tmp_path: Path) -> None:
    request = rq.SaveAdapter(name="experts", destination=str(tmp_path / "copy"))

    saved = trained.service.start(request).result(timeout=120)

    assert saved.max_difference == 0
    assert tiny.plain_scores(trained.base, tmp_path / "copy") == pytest.approx(
        read_by_peft(trained.base, trained.experts), rel=1e-9
    )


def test_the_exported_script_trains_the_same(trained: Trained, tmp_path: Path) -> None:
    request = rq.ExportRun(run_id=trained.experts.run_id, destination=str(tmp_path / "out"))
    trained.service.start(request).result(timeout=120)

    done = subprocess.run(
        [sys.executable, "train_again.py"], cwd=tmp_path / "out", capture_output=True, text=True,
        check=True,
    )  # fmt: skip

    losses = [float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines() if "loss" in line]
    events = trained.service.events(trained.experts.run_id)
    ours = [each.loss for each in events if each.type == "step"]
    assert losses == pytest.approx(ours, rel=1e-5)


def test_it_is_extended_and_trained_further(trained: Trained) -> None:
    service = trained.service
    further = train(service, "further", start_from="experts")
    plain = scores(service, "further")[0]

    assert plain == pytest.approx(read_by_peft(trained.base, further), rel=1e-6)
    assert plain != pytest.approx(scores(service, "experts")[0], rel=1e-5)


def test_a_run_whose_adapter_could_not_be_read_back_never_starts(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = peft_io.write

    def write(peft: Any, adapter_id: str, folder: Path) -> None:
        original(peft, adapter_id, folder)
        (folder / "adapter_config.json").unlink()

    monkeypatch.setattr(peft_io, "write", write)

    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        train(trained.service, "unreadable", adapter=rq.Lora(rank=2))
    run = next(run for run in trained.service.snapshot().runs if run.name == "unreadable")
    assert run.step == 0


def test_a_training_is_never_lost(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> float:
        raise ModelError("It reads back differently.")

    monkeypatch.setattr(saving, "verify", refuse)

    with pytest.raises(VerificationFailed) as caught:
        train(trained.service, "kept", adapter=rq.Lora(rank=2))

    run = next(run for run in trained.service.snapshot().runs if run.name == "kept")
    folder = trained.service.runs.get(run.id).folder / "unproven-adapter"
    assert caught.value.what == (
        "The training is done, but its adapter could not be proven: It reads back differently."
    )
    assert str(folder) in caught.value.cure
    assert tiny.plain_scores(trained.base, folder) != tiny.plain_scores(trained.base, None)
