"""A paused run through the real service: it holds still, its model answers, and it goes on."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend import Job, Service
from backend import requests as rq
from backend.engine.training.trainer import AdapterTrainer
from backend.errors import Busy, DiskFull, WorkerDied
from backend.results import RunResult
from tests.engine import tiny

FIELDS: dict[str, Any] = {
    "data": "starter:pirate",
    "tokens_per_step": 256,
    "precision": "fp32",
    "adapter": rq.Lora(rank=4, dropout=0.1),
    "accumulation": 2,
    "max_steps": 8,
}
HELLO = [rq.Message(role="user", content="Where is the cat?")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    base = tiny.write_base(tmp_path_factory.mktemp("base"), layers=2)
    with tiny.start_service(tmp_path_factory.mktemp("workspace"), base) as service:
        yield service


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Do something while the given step computes, once."""
    original = AdapterTrainer.training_step
    plans: dict[int, Callable[[], object]] = {}

    def stepping(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        plan = plans.pop(int(self.state.global_step) + 1, None)
        if plan is not None:
            plan()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", stepping)
    return plans.__setitem__


def wait_for(service: Service, phase: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while service.snapshot().phase != phase:
        assert time.monotonic() < until, f"never {phase}: {service.snapshot().phase}"
        time.sleep(0.01)


def start(service: Service, name: str, **fields: Any) -> Job:
    return service.start(rq.Train(**{**FIELDS, **fields, "name": name}))


def weights(run: RunResult) -> dict[str, torch.Tensor]:
    return load_file(Path(run.adapter_path) / "adapter_model.safetensors")


def assert_same_bits(left: RunResult, right: RunResult) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def kinds(service: Service, run_id: str) -> list[str]:
    return [event.type for event in service.events(run_id)]


def use_the_model(service: Service, name: str, others: list[str], folder: Path) -> None:
    """Ask everything that a paused run allows, of everybody, with chance in it."""
    job = service.snapshot().job
    assert job is not None
    assert job.half_trained is not None
    half = 0.5 if job.half_trained.strength == "any" else 1.0
    variants: list[rq.Variant] = [[], [(name, 1.0)], [(name, half)], *([(o, 1.0)] for o in others)]
    for variant in variants:
        "".join(service.chat(rq.Chat(messages=HELLO, variant=variant, temperature=1.0)))
    asked = rq.SideBySide(conversations=[HELLO] * 3, variants=variants[:3], max_new_tokens=8)
    list(service.side_by_side(asked))
    for request in (
        rq.Compare(prompts=["Hello!"], variants=variants[:3], max_new_tokens=4),
        rq.Score(texts=["The cat is on the mat."], variants=variants[:3]),
        rq.NextToken(prompt="Hello!", variants=variants[:3]),
        rq.SaveAdapter(name=name, destination=str(folder)),
    ):
        service.start(request).result(timeout=60)


def assert_a_pause_changes_nothing(
    service: Service, label: str, fields: dict[str, Any], at_step: Callable[..., None], folder: Path
) -> None:
    """Train twice, once with two pauses in which everybody is asked everything."""
    helper = f"helper {label}"
    tiny.enlist(service, helper, tiny.lora(r=8))
    whole = start(service, f"whole {label}", **fields).result(timeout=120)
    name = f"paused {label}"
    at_step(2, service.pause)
    at_step(5, service.pause)

    job = start(service, name, **fields)
    for pause in range(2):
        wait_for(service, "paused")
        use_the_model(service, name, [helper], folder / f"copy {pause}")
        service.resume()
        wait_for(service, "training")
    paused = job.result(timeout=120)

    assert_same_bits(whole, paused)
    assert [e.loss for e in service.events(whole.run_id) if e.type == "step"] == [
        e.loss for e in service.events(paused.run_id) if e.type == "step"
    ]
    held = [(e.type, e.step) for e in service.events(paused.run_id) if "paused" in e.type]
    assert held == [("paused", 2), ("unpaused", 2), ("paused", 5), ("unpaused", 5)]
    assert service.snapshot().irregular == ""


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gradient_checkpointing": True},
        {"adapter": rq.Lora(rank=4, dropout=0.1, use_dora=True)},
        {"adapter": rq.Lora(rank=4, use_rslora=True, targets=["q_proj", "up_proj"])},
    ],
    ids=["lora", "checkpointing", "dora", "some layers"],
)
def test_a_paused_run_ends_with_the_bits_of_one_that_was_not(
    service: Service,
    fields: dict[str, Any],
    at_step: Callable[..., None],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    assert_a_pause_changes_nothing(service, request.node.callspec.id, fields, at_step, tmp_path)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_pause_changes_no_bit_on_a_quantised_base_either(
    quantization: str, at_step: Callable[..., None], tmp_path: Path
) -> None:
    """Answers let bitsandbytes rearrange what training reads (see `guards`)."""
    base = tiny.write_base(tmp_path / "base", layers=2)
    with tiny.start_service(tmp_path / "workspace", base) as service:
        load = rq.LoadModel(source=str(base), quantization=quantization)
        service.start(load).result(timeout=120)
        assert_a_pause_changes_nothing(service, quantization, {}, at_step, tmp_path)


def test_the_half_trained_adapter_answers_under_its_name_as_it_is_now(
    service: Service, at_step: Callable[..., None]
) -> None:
    at_step(3, service.pause)
    job = start(service, "half way", learning_rate=0.05)
    wait_for(service, "paused")

    score = rq.Score(texts=["Where is the cat?"], variants=[[], [("half way", 1.0)]])
    base, half = service.start(score).result(timeout=60).scores
    info = service.snapshot().job
    assert info is not None
    assert info.half_trained is not None
    assert (info.half_trained.name, info.half_trained.state) == ("half way", "half-trained")
    assert info.half_trained.steps == 3
    assert "half way" not in [each.name for each in service.snapshot().adapters]
    assert base != half
    service.resume()
    job.result(timeout=120)
    end = service.start(score).result(timeout=60).scores[1]
    assert end not in (base, half)
    assert service.snapshot().job is None


def test_a_paused_run_says_that_it_is_and_what_it_allows(
    service: Service, at_step: Callable[..., None]
) -> None:
    at_step(2, service.pause)
    job = start(service, "holds still")
    wait_for(service, "paused")

    snapshot = service.snapshot()
    assert snapshot.job is not None
    assert snapshot.job.paused
    assert snapshot.runs[0].paused
    with pytest.raises(Busy, match=r"holds still is paused\. .* model can only answer"):
        service.start(rq.SetActive(adapters=[]))
    with pytest.raises(Busy):
        start(service, "another")
    service.resume()
    job.result(timeout=120)

    assert not service.snapshot().runs[0].paused


def test_a_paused_run_is_saved_and_can_be_saved_again(
    service: Service, at_step: Callable[..., None]
) -> None:
    at_step(2, service.pause)
    job = start(service, "saved while paused")
    assert job.run_id is not None
    wait_for(service, "paused")

    service.save_now()
    until = time.monotonic() + 30
    while kinds(service, job.run_id).count("saved") < 2 and time.monotonic() < until:
        time.sleep(0.02)
    checkpoint = service.runs.get(job.run_id).latest_checkpoint()

    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    assert kinds(service, job.run_id).count("saved") == 2
    service.resume()
    job.result(timeout=120)


def test_save_now_saves_at_the_end_of_the_step_and_changes_no_bit(
    service: Service, at_step: Callable[..., None]
) -> None:
    whole = start(service, "not saved early").result(timeout=120)
    at_step(3, service.save_now)

    run = start(service, "saved early").result(timeout=120)

    saved = [event.step for event in service.events(run.run_id) if event.type == "saved"]
    assert saved[0] == 3
    assert_same_bits(whole, run)


def test_stopping_a_paused_run_ends_it_where_it_is_and_it_can_be_resumed(
    service: Service, at_step: Callable[..., None]
) -> None:
    whole = start(service, "never stopped").result(timeout=120)
    at_step(3, service.pause)
    job = start(service, "stopped in the pause")
    wait_for(service, "paused")

    service.stop()
    stopped = job.result(timeout=120)
    resumed = service.start(rq.Resume(run_id=stopped.run_id)).result(timeout=120)

    assert (stopped.state, stopped.steps) == ("stopped", 3)
    assert service.curve(stopped.run_id).step == list(range(1, 9))
    assert_same_bits(whole, resumed)


def test_a_stop_takes_the_answer_that_is_coming_along(
    service: Service, at_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.engine.inference.generate.end_tokens", lambda base: [])
    monkeypatch.setattr("backend.engine.inference.direct_decoding.end_tokens", lambda base: [])
    at_step(2, service.pause)
    job = start(service, "stopped while it answers")
    wait_for(service, "paused")

    pieces = service.chat(rq.Chat(messages=HELLO, max_new_tokens=200))
    next(pieces)
    with pytest.raises(Busy, match="Answering is still going on"):
        service.start(rq.NextToken(prompt="Hello", variants=[[]]))
    service.stop()

    assert job.result(timeout=120).steps == 2
    list(pieces)


def test_closing_an_answer_leaves_the_paused_run_alone(
    service: Service, at_step: Callable[..., None]
) -> None:
    at_step(2, service.pause)
    job = start(service, "goes on after an answer")
    wait_for(service, "paused")

    pieces = service.chat(rq.Chat(messages=HELLO, max_new_tokens=200))
    next(pieces)
    pieces.close()

    assert service.snapshot().phase == "paused"
    service.resume()
    assert job.result(timeout=120).state == "finished"


def test_an_answer_asked_just_before_the_run_goes_on_still_comes(
    service: Service, at_step: Callable[..., None]
) -> None:
    at_step(2, service.pause)
    job = start(service, "asked in the last moment")
    wait_for(service, "paused")

    asked = service.start(rq.Score(texts=["Hello there!"], variants=[[]]))
    service.resume()
    with pytest.raises(Busy):
        service.start(rq.Score(texts=["Hello there!"], variants=[[]]))

    assert asked.result(timeout=30).tokens
    assert job.result(timeout=120).state == "finished"


def test_an_answer_that_fails_leaves_the_paused_run_as_it_was(
    service: Service, at_step: Callable[..., None]
) -> None:
    whole = start(service, "nobody failed").result(timeout=120)
    at_step(3, service.pause)
    job = start(service, "somebody failed")
    wait_for(service, "paused")

    too_long = rq.Chat(messages=[rq.Message(role="user", content="cat " * 600)])
    with pytest.raises(Exception, match="the model reads at most"):
        list(service.chat(too_long))
    with pytest.raises(Exception, match="no adapter called 'ghost'"):
        service.start(rq.Score(texts=["x y z"], variants=[[("ghost", 1.0)]])).result(timeout=60)
    service.resume()

    assert_same_bits(whole, job.result(timeout=120))


def test_a_full_disk_ends_no_run_that_is_paused(
    service: Service, at_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: AdapterTrainer) -> int:
        raise DiskFull("No space left on device.")

    with monkeypatch.context() as patched:
        patched.setattr(AdapterTrainer, "save_now", full)
        at_step(2, service.pause)
        job = start(service, "full disk in the pause")
        assert job.run_id is not None
        wait_for(service, "paused")
        service.resume()
        assert job.result(timeout=120).state == "finished"

    told = [event.text for event in service.events(job.run_id) if event.type == "notice"]
    assert told == ["The run could not be saved at this step: No space left on device."]


def test_what_a_paused_run_does_not_allow_waits_for_its_end(
    service: Service, at_step: Callable[..., None]
) -> None:
    at_step(2, service.pause)
    job = start(service, "others wait")
    wait_for(service, "paused")

    beside = service.start(rq.PreviewData(data="starter:pirate"))  # inline: the same engine
    service.start(rq.Score(texts=["Hello there!"], variants=[[]])).result(timeout=60)
    assert not beside.done()
    service.resume()

    assert job.result(timeout=120).state == "finished"
    assert beside.result(timeout=60).rows


def test_pausing_when_nothing_trains_does_nothing(service: Service) -> None:
    before = service.snapshot().model_dump(exclude={"version", "memory_bytes"})

    service.pause()
    service.resume()
    service.save_now()

    assert service.snapshot().model_dump(exclude={"version", "memory_bytes"}) == before


def test_a_worker_killed_while_paused_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base")
    with tiny.start_service(tmp_path / "work", base, runtime="process") as service:
        job = start(service, "killed", max_steps=400, save_every=400)
        service.pause()
        wait_for(service, "paused", seconds=120)
        text = "".join(service.chat(rq.Chat(messages=HELLO, variant=[("killed", 1.0)])))
        assert isinstance(text, str)

        assert service.engine._runtime is not None
        service.engine._runtime.kill()
        with pytest.raises(WorkerDied):
            job.result(timeout=60)
        wait_for(service, "ready", seconds=120)

        run = next(run for run in service.snapshot().runs if run.id == job.run_id)
        assert (run.state, run.resumable, run.paused) == ("interrupted", True, False)
        again = service.start(rq.Resume(run_id=run.id))
        threading.Timer(1.0, service.stop).start()
        assert again.result(timeout=120).steps > run.step
