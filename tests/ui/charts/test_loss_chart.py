import json
from collections.abc import Callable

import pytest

from backend import Curve, Event, errors
from tests.ui.fake_service import FakeService
from ui.charts.loss_chart import MOST_NEW, MOST_POINTS, points_reader, thin, update

RUN = "20260101-120000-pirate-abcd"


def steps(count: int, start: int = 1) -> list[Event]:
    return [
        Event(
            seq=n,
            time=0.0,
            type="step",
            step=n,
            loss=4.0 / n + 0.123456789,
            learning_rate=0.003 / n,
        )
        for n in range(start, start + count)
    ]


def whole(events: list[Event]) -> Callable[[], Curve]:
    points = [event for event in events if event.type == "step"]
    return lambda: Curve(
        step=[e.step for e in points],
        loss=[e.loss for e in points],
        learning_rate=[e.learning_rate for e in points],
    )


@pytest.mark.parametrize("so_far", [100, 10_000])
@pytest.mark.parametrize("fresh", [1, 10, 150])
def test_an_update_stays_below_1_kb(so_far: int, fresh: int) -> None:
    events = steps(so_far + fresh)
    answer = {"run": RUN, **update(events, so_far, whole(events))}
    assert not answer["reset"]
    assert len(answer["s"]) <= MOST_NEW
    assert len(json.dumps(answer)) <= 1024


def test_the_first_load_is_thinned_and_keeps_the_extremes() -> None:
    events = steps(10_000)
    events[5_000] = events[5_000].model_copy(update={"loss": 9.0})
    answer = update(events, 0, whole(events))
    assert answer["reset"]
    assert len(answer["s"]) <= MOST_POINTS
    assert (answer["s"][0], answer["s"][-1]) == (1, 10_000)
    assert 9.0 in answer["l"]


def test_a_resume_sends_the_whole_curve_again() -> None:
    events = [*steps(20), Event(seq=21, time=0, type="resumed", step=10), *steps(3, 22)]
    assert update(events, 20, whole(events))["reset"]
    assert not update(events, 21, whole(events))["reset"]


def test_a_page_that_slept_gets_the_whole_curve_again() -> None:
    assert update(steps(1_000), 100, whole(steps(1_000)))["reset"]


def test_a_run_is_over_until_it_is_resumed() -> None:
    events = [*steps(3), Event(seq=4, time=0, type="stopped", step=3)]
    assert update(events, 3, whole(events))["over"]
    events.append(Event(seq=5, time=0, type="resumed", step=3))
    assert not update(events, 4, whole(events))["over"]


def test_nan_is_a_gap_and_valid_json() -> None:
    events = steps(3)
    events[1] = events[1].model_copy(update={"loss": float("nan")})
    answer = update(events, 0, whole(events))
    assert answer["l"][1] is None
    json.dumps(answer, allow_nan=False)


def test_few_points_are_all_kept() -> None:
    assert thin([3.0, 1.0, 2.0], 10) == [0, 1, 2]


def test_a_run_that_does_not_exist_is_gone(service: FakeService) -> None:
    points = points_reader(service)
    assert points({"run": "nothing", "seq": 0}) == {"run": "nothing", "gone": True}
    assert points({"run": "../../etc", "seq": 0})["gone"]
    with pytest.raises(errors.WorkbenchError):
        service.events("nothing")
