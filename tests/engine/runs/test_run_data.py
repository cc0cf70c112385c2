"""The plan of what remains of a run over other data: whole, without a step on nothing."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from backend.engine.runs import run_data
from backend.engine.training import extension
from backend.errors import Unsupported
from backend.results import DataMark
from backend.runs.data_record import DataRecord, Restart
from backend.runs.run_records import RunStatus


def documents(lengths: list[int]) -> list[Tokens]:
    return [Tokens(np.arange(n, dtype=np.int32), np.ones(n, dtype=bool)) for n in lengths]


def status(total: int, **fields: Any) -> RunStatus:
    stretches = fields.pop("stretches", ((0, total),))
    restart = fields.pop("restart", None)
    mark = DataMark(rows=1, content="x")
    data = DataRecord(mark=mark, stretches=stretches, restart=restart)
    return RunStatus(total_steps=total, step=1, data=data, **fields)


def trained(plan: extension.Plan, request: rq.Train, step: int) -> Counter[int]:
    """Count how often each document is trained on after a step."""
    last = plan.total_steps * request.accumulation
    packs = plan.packs.packs[step * request.accumulation : last]
    return Counter(number for pack in packs for number in pack)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("count", [1, 4, 37, 500])
def test_what_remains_is_made_over_every_new_document(count: int, accumulation: int) -> None:
    request = rq.Train(name="x", epochs=4, tokens_per_step=32, accumulation=accumulation, seed=3)
    restart = run_data.restart_at(25, status(100), request)

    plan = extension.plan(documents([9] * count), request, [], restart)

    assert restart.epochs == 3.0
    assert trained(plan, request, 25) == dict.fromkeys(range(count), 3)
    (stretch,) = plan.stretches
    assert stretch.start == 0
    assert stretch.steps > 25


def test_a_limit_of_steps_still_holds() -> None:
    request = rq.Train(name="x", epochs=50, max_steps=40, tokens_per_step=32)
    restart = run_data.restart_at(30, status(40), request)

    plan = extension.plan(documents([9] * 100), request, [], restart)

    assert plan.total_steps == 40
    at_end = run_data.restart_at(40, status(40), request)
    assert extension.plan(documents([9] * 100), request, [], at_end).total_steps == 40


def test_an_interrupted_extension_goes_on_with_its_rest() -> None:
    request = rq.Train(name="x", epochs=2, tokens_per_step=32)
    before = status(60, stretches=((0, 40), (40, 20)), extra_epochs=[2.0])

    restart = run_data.restart_at(50, before, request)
    plan = extension.plan(documents([9] * 30), request, [2.0], restart)

    assert (restart.epochs, restart.extensions) == (1.0, 1)
    assert plan.stretches[0] == (0, 40)
    assert plan.stretches[1].start == 40
    assert trained(plan, request, 50) == dict.fromkeys(range(30), 1)


def test_a_second_change_counts_from_the_first() -> None:
    request = rq.Train(name="x", epochs=4, tokens_per_step=32)
    first = run_data.restart_at(50, status(100), request)
    before = status(90, stretches=((0, 90),), restart=first)

    second = run_data.restart_at(70, before, request)

    assert first.epochs == 2.0
    assert second.epochs == 1.0


def test_an_extension_after_a_change_follows_it() -> None:
    request = rq.Train(name="x", epochs=4, tokens_per_step=32)
    restart = run_data.restart_at(50, status(100), request)

    plan = extension.plan(documents([9] * 30), request, [1.0], restart)

    assert len(plan.stretches) == 2
    end = plan.stretches[0].steps
    assert plan.stretches[1].start == end
    assert trained(plan, request, end) == dict.fromkeys(range(30), 1)


def test_more_steps_than_remain_go_on_over_the_new_documents() -> None:
    request = rq.Train(name="x", epochs=4, tokens_per_step=32, max_steps=100)
    restart = run_data.restart_at(50, status(100), request)
    plan = extension.plan(documents([9] * 30), request, [], restart)

    packs = extension.enough(plan, request, [], 400, restart)

    assert len(packs) >= 400


def test_an_extension_of_an_earlier_version_that_broke_off_is_refused() -> None:
    request = rq.Train(name="x")
    before = RunStatus(total_steps=60, step=50, extra_epochs=[2.0])

    with pytest.raises(Unsupported, match="did not record how far the extension was"):
        run_data.restart_at(50, before, request)


def test_a_restart_with_absurd_numbers_is_not_read() -> None:
    with pytest.raises(ValueError, match="epochs"):
        Restart(step=3, epochs=1e300)
