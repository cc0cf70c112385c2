"""Training through the real service: learning, saving, stopping, resuming, failing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend import Service
from backend import requests as rq
from backend.engine import steps
from backend.engine.trainer import AdapterTrainer
from backend.errors import DiskFull, Diverged, InvalidRequest, OutOfMemory
from backend.results import RunResult

TEXTS = ["Where is the cat?", "The cat is on the mat.", "Arr, the cat be on the mat!", "Hello!"]
QUICK: dict[str, Any] = {"data": "starter:pirate", "tokens_per_step": 256, "precision": "fp32"}

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


def train(service: Service, name: str, **fields: Any) -> RunResult:
    request = rq.Train(**{**QUICK, "name": name, **fields})
    result: RunResult = service.start(request).result(timeout=300)
    return result


def scores(service: Service, variant: rq.Variant) -> list[float]:
    request = rq.Score(texts=TEXTS, variants=[variant])
    values: list[float] = service.start(request).result(timeout=60).scores[0]
    return values


def weights(run: RunResult) -> dict[str, torch.Tensor]:
    return load_file(Path(run.adapter_path) / "adapter_model.safetensors")


def assert_same_bits(left: RunResult, right: RunResult) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


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


def test_a_resumed_run_ends_with_the_same_bits(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {
        "adapter": rq.Lora(rank=4, dropout=0.1),
        "max_steps": 12,
        "accumulation": 2,
        "save_every": 5,
    }
    whole = train(base_only, "uninterrupted", **fields)
    stop_after(base_only, monkeypatch, step=7)

    job = base_only.start(rq.Train(**{**QUICK, "name": "interrupted", **fields}))
    stopped = job.result(timeout=300)
    monkeypatch.undo()
    resumed = base_only.start(rq.Resume(run_id=stopped.run_id)).result(timeout=300)

    assert (stopped.state, stopped.steps) == ("stopped", 7)
    assert (resumed.state, resumed.steps) == ("finished", 12)
    assert_same_bits(whole, resumed)
    assert base_only.curve(stopped.run_id).step == list(range(1, 13))


def stop_after(service: Service, monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    """Press Stop while the given step computes."""
    original = AdapterTrainer.training_step
    pressed: list[int] = []

    def pressing(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1 and not pressed:
            pressed.append(step)
            service.stop()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", pressing)


def test_a_stopped_run_says_so_and_keeps_its_adapter(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(base_only, monkeypatch, step=3)

    run = train(base_only, "stopped early", max_steps=10)

    summary = next(r for r in base_only.snapshot().runs if r.id == run.run_id)
    assert summary.state == "stopped"
    assert summary.message == "Stopped after step 3 of 10; everything is saved."
    assert summary.resumable
    assert scores(base_only, [("stopped early", 1.0)]) != scores(base_only, [])


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scores(base_only, [])
    original = AdapterTrainer.compute_loss

    def poisoned(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 5 else loss

    monkeypatch.setattr(AdapterTrainer, "compute_loss", poisoned)
    job = base_only.start(rq.Train(**{**QUICK, "name": "diverges", "save_every": 4}))
    with pytest.raises(Diverged, match="The loss became nan in step 6") as caught:
        job.result(timeout=300)

    assert "learning rate" in caught.value.cure
    assert job.run_id is not None
    checkpoint = base_only.runs.get(job.run_id).latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4"
    kept = load_file(checkpoint / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert base_only.runs.get(job.run_id).status().state == "failed"
    assert scores(base_only, []) == before


def test_gradients_that_are_not_finite_stop_before_the_correction(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AdapterTrainer.training_step

    def poisoned(self: AdapterTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, *args, **kwargs)
        if self.state.global_step == 5:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(AdapterTrainer, "training_step", poisoned)
    job = base_only.start(rq.Train(**{**QUICK, "name": "steep", "save_every": 2}))
    with pytest.raises(Diverged, match="The gradients of step 6 are not finite") as caught:
        job.result(timeout=300)

    assert job.run_id is not None
    checkpoint = base_only.runs.get(job.run_id).latest_checkpoint()
    assert checkpoint is not None
    kept = load_file(checkpoint / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert "The last checkpoint is from before and is good." in caught.value.cure


def test_without_a_checkpoint_none_is_promised(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AdapterTrainer.compute_loss
    monkeypatch.setattr(
        AdapterTrainer, "compute_loss", lambda *a, **k: original(*a, **k) * float("nan")
    )

    with pytest.raises(Diverged, match="in step 1") as caught:
        train(base_only, "at once")

    assert "checkpoint" not in caught.value.cure


def test_a_resumed_runs_own_adapter_is_on_again_afterwards(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(base_only, patch, step=2)
        run = train(base_only, "half", max_steps=4)
    base_only.start(rq.SetActive(adapters=[("half", 0.5)])).result(timeout=60)

    base_only.start(rq.Resume(run_id=run.run_id)).result(timeout=300)

    assert base_only.snapshot().active == [("half", 0.5)]
    base_only.start(rq.SetActive(adapters=[])).result(timeout=60)


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
    assert any("It goes on from first dora" in note for note in told.notes)


def test_undoing_a_deletion_keeps_a_stopped_runs_name(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(base_only, patch, step=1)
        run = train(base_only, "back again", max_steps=3)
    base_only.start(rq.DeleteAdapter(name="back again")).result(timeout=60)
    restored = base_only.start(rq.RestoreAdapter(name="back again")).result(timeout=60)
    assert restored.adapter.name == "back again"

    base_only.start(rq.DeleteAdapter(name="back again")).result(timeout=60)
    base_only.start(rq.Resume(run_id=run.run_id)).result(timeout=300)
    with pytest.raises(InvalidRequest, match="its run went on after it was deleted"):
        base_only.start(rq.RestoreAdapter(name="back again")).result(timeout=60)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AdapterTrainer.save_model

    def full_disk(self: AdapterTrainer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.state.global_step == 6:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(AdapterTrainer, "save_model", full_disk)
    fields: dict[str, Any] = {"name": "full disk", "save_every": 3, "max_steps": 8}
    job = base_only.start(rq.Train(**{**QUICK, **fields}))
    with pytest.raises(DiskFull, match="No space left"):
        job.result(timeout=300)
    monkeypatch.undo()

    assert job.run_id is not None
    run = base_only.runs.get(job.run_id)
    assert [p.name for p in run.checkpoints.iterdir()] == ["checkpoint-3"]
    resumed = base_only.start(rq.Resume(run_id=run.id)).result(timeout=300)
    assert resumed.state == "finished"


def test_running_out_of_memory_names_it_and_changes_nothing(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scores(base_only, [])

    def exhausted(*args: Any) -> Any:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(steps, "loss_sum", exhausted)
    with pytest.raises(OutOfMemory, match="ran out of memory") as caught:
        train(base_only, "too big", max_steps=2)
    monkeypatch.undo()

    assert "token budget" in caught.value.cure
    assert scores(base_only, []) == before
    assert train(base_only, "too big", max_steps=2).state == "finished"


def test_a_run_that_runs_out_of_memory_keeps_its_steps_and_can_be_retried(
    base_only: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scores(base_only, [])
    real, calls = AdapterTrainer.compute_loss, iter(range(100))

    def exhausted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", exhausted)
    request = rq.Train(
        **{**QUICK, "tokens_per_step": 1024}, name="grew", save_every=99, max_steps=5
    )
    job = base_only.start(request)
    with pytest.raises(OutOfMemory, match=r"The largest cost is .* about .* of ") as caught:
        job.result(timeout=300)
    monkeypatch.undo()

    assert job.run_id is not None
    run = base_only.runs.get(job.run_id)
    summary = run.summary()
    assert (summary.state, summary.step, summary.resumable) == ("failed", 3, True)
    assert [p.name for p in run.checkpoints.iterdir()] == ["checkpoint-3"]
    assert scores(base_only, []) == before
    assert caught.value.cure.startswith("Retry with ")
    assert summary.retry
    again = rq.Train(**{**request.model_dump(), **summary.retry, "name": "smaller", "max_steps": 4})
    assert train_is_smaller(again, request)
    assert base_only.start(again).result(timeout=300).state == "finished"
    resumed = base_only.start(rq.Resume(run_id=run.id)).result(timeout=300)
    assert resumed.state == "finished"


def train_is_smaller(left: rq.Train, right: rq.Train) -> bool:
    fewer = left.tokens_per_step < right.tokens_per_step
    return fewer or (left.gradient_checkpointing and not right.gradient_checkpointing)


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
        (rq.Lora(rank=1024), "Rank 1024 is more than the smallest matched layer can hold"),
    ],
)
def test_targets_and_ranks_that_cannot_work_are_refused(
    base_only: Service, adapter: rq.Lora, sentence: str
) -> None:
    before = scores(base_only, [])

    with pytest.raises(InvalidRequest, match=sentence) as caught:
        train(base_only, "refused", adapter=adapter, max_steps=2)

    assert caught.value.cure
    assert scores(base_only, []) == before
    assert "refused" not in [info.name for info in base_only.library.all()]


def test_a_name_is_given_once(base_only: Service) -> None:
    train(base_only, "unique", max_steps=1)

    with pytest.raises(InvalidRequest, match="already an adapter called 'Unique'") as caught:
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
