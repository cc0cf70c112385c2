"""Training through the real service: learning, saving, refusing, and what a run tells of itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backend import Service
from backend import requests as rq
from backend.errors import InvalidRequest
from tests.engine.starter_runs import QUICK, TEXTS, assert_same_bits, scores, train, weights

# Five lines of plain PEFT, and what they score.
PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(model, adapter).eval()
scores = []
for text in texts:
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
    scores.append(log_probs.gather(1, ids[0, 1:, None]).double().sum().item())
print(json.dumps(scores))
"""


def plain_peft_scores(service: Service, adapter: str) -> list[float]:
    base = service.snapshot().base
    assert base is not None
    command = [sys.executable, "-c", PLAIN_PEFT, base.path, adapter, json.dumps(TEXTS)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values: list[float] = json.loads(output.splitlines()[-1])
    return values


def test_an_adapter_learns_what_the_base_does_not_know(base_only: Service) -> None:
    run = train(base_only, "learner", max_steps=60)

    assert run.first_loss is not None
    assert run.final_loss is not None
    assert run.final_loss < 0.5 * run.first_loss
    assert run.evaluation_before is not None
    assert run.evaluation is not None
    assert run.evaluation.loss < 0.5 * run.evaluation_before.loss
    assert run.evaluation.token_accuracy > run.evaluation_before.token_accuracy + 0.2


@pytest.mark.parametrize(
    "adapter",
    [
        rq.Lora(rank=4),
        rq.Lora(rank=16, alpha=8, use_rslora=True, targets="attention"),
        rq.Lora(rank=4, use_dora=True, targets=["q_proj", "down_proj"]),
    ],
    ids=["lora", "rslora", "dora"],
)
def test_plain_peft_reads_a_saved_adapter_and_agrees(base_only: Service, adapter: rq.Lora) -> None:
    name = f"oracle {adapter.rank}{adapter.use_rslora}{adapter.use_dora}"
    run = train(base_only, name, adapter=adapter, max_steps=8)

    expected = plain_peft_scores(base_only, run.adapter_path)
    actual = scores(base_only, [(name, 1.0)])

    assert run.max_difference == 0.0
    assert actual == pytest.approx(expected, rel=1e-5)
    assert actual != pytest.approx(scores(base_only, []), rel=1e-3)


def test_a_saved_copy_reads_back_and_is_plain_peft(base_only: Service, tmp_path: Path) -> None:
    train(base_only, "copied", max_steps=4)

    request = rq.SaveAdapter(name="copied", destination=str(tmp_path / "copy"))
    saved = base_only.start(request).result(timeout=60)

    assert saved.max_difference == 0.0
    assert plain_peft_scores(base_only, saved.path) == pytest.approx(
        scores(base_only, [("copied", 1.0)]), rel=1e-5
    )
    with pytest.raises(InvalidRequest, match="not an empty folder"):
        base_only.start(request).result(timeout=60)


def test_precision_of_one_run_leaves_no_trace_in_the_next(base_only: Service) -> None:
    """Trainer's own bf16 switch leaves autocast behind (Transformers 5.23); ours must not."""
    before = scores(base_only, [])

    first = train(base_only, "trace fp32 a", max_steps=6, precision="fp32")
    middle = train(base_only, "trace bf16", max_steps=6, precision="bf16")
    last = train(base_only, "trace fp32 b", max_steps=6, precision="fp32")

    assert scores(base_only, []) == before
    assert_same_bits(first, last)
    assert any(not torch.equal(a, b) for a, b in zip(
        weights(first).values(), weights(middle).values(), strict=True
    ))  # fmt: skip


def test_the_earlier_active_adapter_answers_again_after_training(base_only: Service) -> None:
    train(base_only, "earlier", max_steps=4)
    base_only.start(rq.SetActive(adapters=[("earlier", 1.0)])).result(timeout=60)
    active = scores(base_only, [("earlier", 1.0)])

    train(base_only, "later", max_steps=4)

    assert base_only.snapshot().active == [("earlier", 1.0)]
    assert scores(base_only, [("earlier", 1.0)]) == active


def test_other_adapters_do_not_take_part_in_training(base_only: Service) -> None:
    alone = train(base_only, "alone", max_steps=4)
    base_only.start(rq.SetActive(adapters=[("alone", 1.0)])).result(timeout=60)

    beside = train(base_only, "beside", max_steps=4)

    assert_same_bits(alone, beside)


def test_going_on_from_an_adapter_keeps_its_method_and_rank(base_only: Service) -> None:
    train(base_only, "first dora", adapter=rq.Lora(rank=4, use_dora=True), max_steps=1)

    run = train(base_only, "second dora", start_from="first dora", max_steps=1)

    info = base_only.library.get("second dora")
    assert (info.method, info.rank) == ("DoRA", 4)
    summary = next(r for r in base_only.snapshot().runs if r.id == run.run_id)
    assert (summary.method, summary.rank) == ("DoRA", 4)
    told = base_only.start(
        rq.Preflight(train=rq.Train(**{**QUICK, "name": "x", "start_from": "first dora"}))
    ).result(timeout=60)
    assert any("Training continues from first dora" in note for note in told.notes)


def test_gradient_checkpointing_changes_no_number(base_only: Service) -> None:
    plain = train(base_only, "plain", max_steps=4)
    frugal = train(base_only, "frugal", max_steps=4, gradient_checkpointing=True)

    assert_same_bits(plain, frugal)


def test_accumulated_packs_count_as_one_batch(base_only: Service) -> None:
    """Packs of a step weigh by their tokens: how they are cut must not change the loss."""
    whole = train(base_only, "one pack", tokens_per_step=2048, epochs=0.1, max_steps=1)
    parts = train(
        base_only, "many packs", tokens_per_step=128, accumulation=64, epochs=0.1, max_steps=1
    )

    assert whole.first_loss == pytest.approx(parts.first_loss, rel=1e-5)


def test_training_goes_on_from_another_adapter(base_only: Service) -> None:
    first = train(base_only, "foundation", max_steps=20)

    second = train(base_only, "built on it", start_from="foundation", max_steps=2)

    assert first.final_loss is not None
    assert second.first_loss is not None
    assert second.first_loss < 0.8 * (first.first_loss or 0)
    assert second.evaluation_before == first.evaluation_before


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        (rq.Lora(targets=["q_prj"]), "No layer is called 'q_prj' in this model."),
        (rq.Lora(targets=["q_proj", "fake"]), "No layer is called 'fake' in this model."),
        (rq.Lora(rank=1024), "Rank 1024 is larger than any target layer allows"),
    ],
)
def test_targets_and_ranks_that_cannot_work_are_refused(
    base_only: Service, adapter: rq.Lora, sentence: str
) -> None:
    before = scores(base_only, [])

    with pytest.raises(InvalidRequest, match=sentence) as caught:
        train(base_only, "cannot work", adapter=adapter, max_steps=2)

    assert caught.value.cure
    assert scores(base_only, []) == before
    assert "cannot work" not in [info.name for info in base_only.library.all()]


def test_a_name_is_given_once(base_only: Service) -> None:
    train(base_only, "unique", max_steps=1)

    with pytest.raises(InvalidRequest, match="already an adapter called 'unique'") as caught:
        base_only.start(rq.Train(**{**QUICK, "name": "Unique"}))

    assert caught.value.cure == "'Unique 2' is free."


def test_the_run_tells_which_precision_and_why(base_only: Service) -> None:
    run = train(base_only, "measured", precision="auto", max_steps=2)

    assert run.precision in ("fp32", "bf16")
    assert "in fp32 and" in run.precision_reason
    told = [e.text for e in base_only.events(run.run_id) if e.type == "precision"]
    assert told == [f"Computing in {run.precision}: {run.precision_reason}."]


def test_speed_counts_tokens_without_padding(base_only: Service) -> None:
    run = train(base_only, "speed", epochs=1)

    report = base_only.start(rq.Preflight(train=rq.Train(**{**QUICK, "name": "x", "epochs": 1})))
    stats = report.result(timeout=60).stats
    assert run.tokens_per_second * run.seconds == pytest.approx(stats.tokens, rel=1e-6)
