"""The answer to a page's poll: a redraw only for what a step does not change."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from backend import requests as rq
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.app.live_views import BAR, RUN, LiveViews
from ui.app.theme import STYLE
from ui.components.service_handle import ServiceHandle

TRAIN, LOAD, RUNS = "train", "load", "runs"


@pytest.fixture
def live(service: FakeService) -> LiveViews:
    return LiveViews(ServiceHandle(service))


@pytest.fixture
def run_id(service: FakeService) -> Iterator[str]:
    """A run that is under way for as long as the test looks at it."""
    service.step_seconds = 0.05
    job = service.start(rq.Train(name="long", epochs=900, max_steps=10_000))
    assert job.run_id is not None
    wait_for(lambda: step_of(service, job.run_id) > 0)
    yield job.run_id
    service.stop()
    job.wait(10)


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def step_of(service: FakeService, run_id: str | None) -> int:
    return next(run.step for run in service.snapshot().runs if run.id == run_id)


def one_step(service: FakeService, run_id: str) -> None:
    before = step_of(service, run_id)
    wait_for(lambda: step_of(service, run_id) > before)


def marks(news: dict[str, Any]) -> dict[str, str]:
    return {name: view["mark"] for name, view in news["views"].items()}


def step_in(news: dict[str, Any]) -> int:
    shown = re.search(r"([\d,]+) of 10,000", words(news["views"][RUN]["node"]))
    assert shown is not None
    return int(shown[1].replace(",", ""))


def test_a_step_brings_the_run_s_numbers_and_no_redraw(
    live: LiveViews, service: FakeService, run_id: str
) -> None:
    before = live.news(TRAIN, run_id, {})
    one_step(service, run_id)
    after = live.news(TRAIN, run_id, marks(before))

    assert after["state"] == before["state"]
    assert set(after["views"]) == {BAR, RUN}
    assert step_in(after) > step_in(before) > 0


def test_what_is_drawn_already_is_not_sent_again(live: LiveViews) -> None:
    first = live.news(TRAIN, "", {})

    assert set(first["views"]) == {BAR}
    assert live.news(TRAIN, "", marks(first))["views"] == {}
    assert set(live.news(TRAIN, "", {BAR: "of something else"})["views"]) == {BAR}


def test_a_pause_and_the_end_of_a_run_redraw_the_tab(
    live: LiveViews, service: FakeService, run_id: str
) -> None:
    running = live.news(TRAIN, run_id, {})["state"]
    service.pause()
    wait_for(lambda: service.snapshot().phase == "paused")
    paused = live.news(TRAIN, run_id, {})["state"]
    service.resume()
    service.stop()
    wait_for(lambda: service.snapshot().job is None)

    assert running != paused
    assert live.news(TRAIN, run_id, {})["state"] not in (running, paused)


def test_the_table_of_runs_is_redrawn_with_each_step(
    live: LiveViews, service: FakeService, run_id: str
) -> None:
    before = live.news(RUNS, run_id, {})
    one_step(service, run_id)

    assert live.news(RUNS, run_id, {})["state"] != before["state"]


def test_only_a_run_that_goes_on_and_is_shown_is_drawn(
    live: LiveViews, service: FakeService, run_id: str
) -> None:
    assert set(live.news(TRAIN, run_id, {})["views"]) == {BAR, RUN}
    assert set(live.news(LOAD, run_id, {})["views"]) == {BAR}
    assert set(live.news(TRAIN, "of another app", {})["views"]) == {BAR}
    service.stop()
    wait_for(lambda: service.snapshot().job is None)

    assert set(live.news(TRAIN, run_id, {})["views"]) == {BAR}


def test_a_page_that_opens_gets_the_run_before_it_knows_of_it(
    live: LiveViews, service: FakeService, run_id: str
) -> None:
    assert step_in(live.first()) > 0
    service.stop()
    wait_for(lambda: service.snapshot().job is None)

    assert set(live.first()["views"]) == {BAR}


def test_nothing_on_the_page_moves_by_itself() -> None:
    assert re.findall(r"@keyframes|animation:|transition:", STYLE) == []
