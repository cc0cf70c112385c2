"""Settings that are changed while a run goes on: from the next step, kept when it is resumed."""

from collections.abc import Callable
from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from backend.engine.steps import packing
from backend.errors import InvalidRequest, NotFound
from backend.runs import adjustments
from tests.engine.runs.test_pausing import assert_same_bits, at_step, service, start, wait_for

__all__ = ["at_step", "service"]


def rates(service: Service, run_id: str) -> list[float]:
    return service.curve(run_id).learning_rate


def test_a_new_learning_rate_holds_from_the_next_step(
    service: Service, at_step: Callable[..., None]
) -> None:
    fields: dict[str, Any] = {"scheduler": "linear", "warmup": 0.0, "learning_rate": 0.008}
    at_step(4, lambda: service.adjust(rq.Adjust(learning_rate=0.04)))

    run = start(service, "other rate", **fields).result(timeout=120)

    expected = [0.008, 0.007, 0.006, 0.005, 0.04, 0.03, 0.02, 0.01]
    assert rates(service, run.run_id) == pytest.approx(expected)
    assert service.curve(run.run_id).step == list(range(1, 9))
    told = [e for e in service.events(run.run_id) if e.type == "adjusted"]
    assert [(e.step, e.learning_rate, e.text) for e in told] == [
        (4, 0.04, "Learning rate 0.04 from step 5, falling linearly to zero at step 8.")
    ]


def test_the_same_rate_for_as_many_steps_changes_no_bit(
    service: Service, at_step: Callable[..., None]
) -> None:
    """So taking over a change costs a run nothing of what it was."""
    fields: dict[str, Any] = {"scheduler": "constant"}
    whole = start(service, "left alone", **fields).result(timeout=120)
    at_step(3, lambda: service.adjust(rq.Adjust(learning_rate=0.003, total_steps=8)))

    run = start(service, "changed to the same", **fields).result(timeout=120)

    assert_same_bits(whole, run)


def test_a_constant_rate_is_warmed_up_to(service: Service) -> None:
    run = start(service, "warmed up", scheduler="constant", warmup=0.5).result(timeout=120)

    found = rates(service, run.run_id)
    assert found[0] < 0.5 * max(found)
    assert found[4:] == pytest.approx([max(found)] * 4)


@pytest.mark.parametrize("steps", [6, 40])
def test_a_run_ends_where_it_was_told_to(
    service: Service, at_step: Callable[..., None], steps: int
) -> None:
    at_step(4, lambda: service.adjust(rq.Adjust(total_steps=steps)))

    run = start(service, f"ends at {steps}", max_steps=None, epochs=0.5).result(timeout=120)

    assert (run.state, run.steps, run.total_steps) == ("finished", steps, steps)
    assert rates(service, run.run_id)[-1] < 0.1 * max(rates(service, run.run_id))


def test_the_predicted_time_follows_the_length(
    service: Service, at_step: Callable[..., None]
) -> None:
    before: list[float | None] = []

    def double() -> None:
        before.append(service.runs.all()[0].status().predicted_seconds)
        service.adjust(rq.Adjust(total_steps=40))

    at_step(15, double)
    run = start(service, "twice as long", max_steps=20).result(timeout=120)

    assert before[0] is not None
    status = service.runs.get(run.run_id).status()
    assert status.predicted_seconds == pytest.approx(2 * before[0])


def test_a_resumed_run_keeps_its_changes_bit_for_bit(
    service: Service, at_step: Callable[..., None]
) -> None:
    change = rq.Adjust(learning_rate=0.02, total_steps=10)
    at_step(3, lambda: service.adjust(change))
    whole = start(service, "changed and whole").result(timeout=120)
    at_step(3, lambda: service.adjust(change))
    at_step(6, service.stop)

    stopped = start(service, "changed and stopped").result(timeout=120)
    resumed = service.start(rq.Resume(run_id=stopped.run_id)).result(timeout=120)

    assert (stopped.steps, stopped.total_steps) == (6, 10)
    assert (resumed.state, resumed.steps) == ("finished", 10)
    assert rates(service, resumed.run_id) == rates(service, whole.run_id)
    assert_same_bits(whole, resumed)


def test_a_run_resumed_from_before_a_change_makes_it_again_at_the_same_step(
    service: Service, at_step: Callable[..., None]
) -> None:
    at_step(5, lambda: service.adjust(rq.Adjust(learning_rate=0.02)))
    whole = start(service, "changed at five").result(timeout=120)
    at_step(3, service.save_now)
    at_step(4, service.stop)
    stopped = start(service, "stopped before").result(timeout=120)
    folder = service.runs.get(stopped.run_id).folder
    adjustments.add(folder, adjustments.Adjustment(step=5, learning_rate=0.02))

    resumed = service.start(rq.Resume(run_id=stopped.run_id)).result(timeout=120)

    assert_same_bits(whole, resumed)


def test_a_paused_run_can_be_changed_and_goes_on_with_it(
    service: Service, at_step: Callable[..., None]
) -> None:
    at_step(3, service.pause)
    job = start(service, "changed in the pause")
    wait_for(service, "paused")

    service.adjust(rq.Adjust(total_steps=5))
    service.resume()

    assert job.result(timeout=120).steps == 5


def test_what_cannot_be_changed_is_said(service: Service, at_step: Callable[..., None]) -> None:
    with pytest.raises(NotFound, match="There is no run to change"):
        service.adjust(rq.Adjust(total_steps=5))
    with pytest.raises(InvalidRequest, match="There is nothing to change"):
        rq.Adjust()
    at_step(3, service.pause)
    job = start(service, "further already")
    wait_for(service, "paused")

    with pytest.raises(InvalidRequest, match="is at step 3, so it cannot end at step 3") as caught:
        service.adjust(rq.Adjust(total_steps=3))

    assert caught.value.cure == "Enter at least 4, or stop the run."
    service.resume()
    job.result(timeout=120)


def test_more_steps_than_planned_see_further_epochs(tokens_of: Callable[[int], Tokens]) -> None:
    request = rq.Train(name="x", tokens_per_step=32, epochs=2)
    documents = [tokens_of(length) for length in (5, 9, 13, 20, 31, 8)]
    packs = packing.training_packs(documents, request)

    more = packing.enough(packs, request, 5 * len(packs))

    assert len(more) >= 5 * len(packs)
    assert more.packs[: len(packs)] == packs.packs
    assert packing.enough(packs, request, len(packs)) is packs


@pytest.fixture
def tokens_of() -> Callable[[int], Tokens]:
    import numpy as np

    return lambda length: Tokens(np.arange(length), np.ones(length, dtype=bool))
