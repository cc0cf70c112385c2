"""Guards of a run: the best state, an early end, learning by heart, divergence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend import Service
from backend import requests as rq
from backend.engine.adapters import saving
from backend.engine.runs.early_stopping import BAD_STEPS, BEST, Guards, read_best
from backend.engine.steps import step_loss
from backend.engine.training.trainer import AdapterTrainer
from backend.errors import DiskFull, Diverged
from backend.results import Evaluation
from backend.runs.run_summary import describe
from tests.engine.runs.test_pausing import assert_same_bits, at_step, service, start, weights

__all__ = ["at_step", "service"]


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Let the tests of a run after that of the base come out as told."""

    def script(losses: list[float]) -> None:
        left = iter([9.0, *losses])

        def told(*args: Any) -> Evaluation:
            loss = next(left)
            return Evaluation(
                loss=loss, exact_match=1 / loss, token_accuracy=0.5, examples=10, tokens=50
            )

        monkeypatch.setattr(step_loss, "evaluate", told)

    return script


def warnings(service: Service, run_id: str | None) -> list[str | None]:
    assert run_id is not None
    return [event.text for event in service.events(run_id) if event.type == "warning"]


# -- the best state ------------------------------------------------------------------------------


def test_the_best_state_is_the_adapter_where_that_is_wanted(
    service: Service, at_step: Callable[..., None], held_out: Callable[[list[float]], None]
) -> None:
    held_out([5.0, 4.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    at_step(3, service.save_now)
    run = start(service, "the best", keep_best=True).result(timeout=120)

    folder = service.runs.get(run.run_id).folder
    best = read_best(folder / BEST)
    info = service.library.get("the best")
    assert best is not None
    assert (best.step, run.steps, run.adapter_step, info.steps) == (3, 8, 3, 3)
    assert run.evaluation == info.evaluation == best.evaluation
    kept = load_file(folder / BEST / "adapter_model.safetensors")
    assert all(torch.equal(kept[key], value) for key, value in weights(run).items())
    summary = next(each for each in service.snapshot().runs if each.id == run.run_id)
    assert (summary.eval_loss, summary.step, summary.kept_step) == (3.0, 8, 3)
    assert summary.message == (
        "Finished after 8 steps. The best state was kept as the adapter: step 3 "
        "(held-out loss 3.000)."
    )


def test_the_last_state_is_the_adapter_by_default_and_the_best_is_kept_beside_it(
    service: Service, held_out: Callable[[list[float]], None]
) -> None:
    plain = start(service, "plain").result(timeout=120)
    held_out([5.0, 4.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])

    run = start(service, "the last").result(timeout=120)

    assert run.adapter_step == 8
    assert_same_bits(plain, run)
    best = read_best(service.runs.get(run.run_id).folder / BEST)
    assert best is not None
    assert best.step == 3


def test_a_last_state_that_is_the_best_is_called_so(
    service: Service, held_out: Callable[[list[float]], None]
) -> None:
    held_out([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])

    run = start(service, "ever better", keep_best=True).result(timeout=120)

    status = service.runs.get(run.run_id).status()
    assert status.message == (
        "Finished after 8 steps. The last state is the best one; it was kept as the adapter."
    )
    assert status.kept_step == 0


# -- an early end --------------------------------------------------------------------------------


def test_a_run_ends_early_once_it_gets_no_better(
    service: Service, held_out: Callable[[list[float]], None]
) -> None:
    held_out([5.0, 4.0, 4.5, 4.2, 1.0])

    run = start(service, "patient", patience=2).result(timeout=120)

    summary = next(each for each in service.snapshot().runs if each.id == run.run_id)
    assert (run.state, run.steps, run.total_steps) == ("finished", 4, 8)
    assert summary.message == (
        "Ended early after step 4: held-out loss was lowest at step 2 (4.000) "
        "and has not improved in 2 tests since."
    )
    assert not summary.resumable


def test_without_patience_a_run_goes_on_whatever_comes(
    service: Service, held_out: Callable[[list[float]], None]
) -> None:
    held_out([1.0, *[5.0] * 7])

    assert start(service, "goes on").result(timeout=120).steps == 8


def test_a_resumed_run_loses_patience_where_it_would_have(
    service: Service, at_step: Callable[..., None], held_out: Callable[[list[float]], None]
) -> None:
    held_out([5.0, 4.0, 4.5])
    at_step(3, service.stop)
    stopped = start(service, "stopped in between", patience=3).result(timeout=120)
    held_out([4.2, 4.3])

    step_loss.evaluate(None, None, None, None)  # the base, which is not tested again
    run = service.start(rq.Resume(run_id=stopped.run_id)).result(timeout=120)

    assert (stopped.steps, run.steps, run.state) == (3, 5, "finished")


def test_a_run_that_broke_off_after_its_early_end_trains_no_further(
    service: Service, held_out: Callable[[list[float]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> None:
        raise DiskFull("There is no room.")

    held_out([5.0, 4.0, 4.5, 4.2])
    with monkeypatch.context() as patch:
        patch.setattr(saving, "publish", no_room)
        job = start(service, "patient then broken off", patience=2)
        with pytest.raises(DiskFull):
            job.result(timeout=120)
    assert job.run_id is not None
    held_out([4.2])
    step_loss.evaluate(None, None, None, None)  # the base, which is not tested again

    run = service.start(rq.Resume(run_id=job.run_id)).result(timeout=120)

    assert (run.state, run.steps) == ("finished", 4)
    assert service.runs.get(job.run_id).status().message == (
        "Ended early after step 4: held-out loss was lowest at step 2 (4.000) "
        "and has not improved in 2 tests since."
    )


def test_a_run_that_is_stopped_while_it_loses_patience_can_go_on(
    service: Service, at_step: Callable[..., None], held_out: Callable[[list[float]], None]
) -> None:
    held_out([5.0, 4.0, 4.5])
    at_step(3, service.stop)

    stopped = start(service, "stopped impatient", patience=1).result(timeout=120)
    held_out([4.2])
    step_loss.evaluate(None, None, None, None)  # the base, which is not tested again
    run = service.start(rq.Resume(run_id=stopped.run_id)).result(timeout=120)

    assert (stopped.state, stopped.steps) == ("stopped", 3)
    assert (run.state, run.steps) == ("finished", 4)


def test_a_run_that_gets_no_better_in_its_last_test_is_not_called_early(
    service: Service, held_out: Callable[[list[float]], None]
) -> None:
    held_out([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 2.5])

    run = start(service, "to the end", patience=1).result(timeout=120)

    assert service.runs.get(run.run_id).status().message == "Finished after 8 steps."


# -- learning by heart ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "risen"),
    [
        ([5.0, 4.0, 4.5, 4.6, 4.7, 4.8, 4.9, 5.0], "4.600"),
        ([5.0, 4.0, 4.01, 4.02, 4.03, 4.04, 4.05, 4.06], "4.030"),
    ],
    ids=["far", "slowly"],
)
def test_it_is_said_once_when_training_and_held_out_loss_part(
    service: Service, held_out: Callable[[list[float]], None], losses: list[float], risen: str
) -> None:
    held_out(losses)
    name = service.free_name("by heart")
    job = start(service, name, learning_rate=0.05, warmup=0.0)
    job.result(timeout=120)

    told = warnings(service, job.run_id)
    assert [each and each.split(",")[0] for each in told] == [
        f"Held-out loss has risen from 4.000 at step 2 to {risen}"
    ]


def test_nothing_is_said_while_both_fall(
    service: Service, held_out: Callable[[list[float]], None]
) -> None:
    held_out([5.0, 4.0, 3.9, 3.95, 3.8, 3.7, 3.6, 3.5])
    job = start(service, "all well", learning_rate=0.05)
    job.result(timeout=120)

    assert warnings(service, job.run_id) == []


# -- divergence ----------------------------------------------------------------------------------


def test_a_loss_far_above_its_start_for_many_steps_ends_the_run_with_its_last_good_state(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AdapterTrainer.compute_loss

    def derailed(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs) * (3 if self.state.global_step >= 7 else 1)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", derailed)
    job = start(service, "derailed", max_steps=60, save_every=3, accumulation=1)
    with pytest.raises(Diverged, match=f"for {BAD_STEPS} steps; at step 22 it is") as caught:
        job.result(timeout=120)

    assert "try a quarter of it" in caught.value.cure
    assert job.run_id is not None
    run = service.runs.get(job.run_id)
    assert run.status().state == "failed"
    steps_kept = [int(p.name.rsplit("-", 1)[1]) for p in run.checkpoints.glob("checkpoint-*")]
    assert steps_kept == [6]
    assert read_best(run.folder / BEST) is not None
    assert describe(run).resumable


def test_a_loss_that_comes_back_ends_nothing(service: Service) -> None:
    guards = Guards(rq.Train(name="x"), _FakeLog(), lambda folder: None)
    losses = [2.0] * 5 + [9.0] * (BAD_STEPS - 1) + [2.0] + [9.0] * (BAD_STEPS - 1)

    for step, loss in enumerate(losses, start=1):
        guards.stepped(step, loss)

    with pytest.raises(Diverged):
        guards.stepped(len(losses) + 1, 9.0)


class _FakeLog:
    """A run's log without a run."""

    step = 0
    total_steps = 100

    class run:
        folder = Path("nowhere")
        events_file = Path("nowhere.jsonl")
