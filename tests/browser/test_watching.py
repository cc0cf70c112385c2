"""Watching a run that goes on: reload, a second tab, zoom, and what an update weighs."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Response, expect

from tests.browser.conftest import PATIENCE_MS, App, Visits, idle, step_shown, timed

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ZOOM = "document.querySelector('#train-chart .aw-plot')._fullLayout.xaxis.range.map(Number)"
POINTS = "+document.querySelector('#train-chart .aw-chart').dataset.points"


@pytest.fixture(scope="module")
def long_run(app: App) -> Iterator[str]:
    """A run that goes on for as long as this module looks at it."""
    client = app.client()
    idle(client)
    run_id = client.predict({"name": "watched", "epochs": 900}, api_name="/train")["run_id"]
    yield run_id
    client.predict(api_name="/stop")
    idle(client)
    client.close()


@pytest.fixture
def watching(long_run: str, page: Page) -> Page:
    expect(page.locator("#train-chart .aw-has-points")).to_be_visible(timeout=PATIENCE_MS)
    return page


def more_points(page: Page, count: int) -> None:
    now = page.evaluate(POINTS)
    page.wait_for_function(f"n => {POINTS} >= n", arg=now + count, timeout=PATIENCE_MS)


def test_a_reload_shows_the_same_progress(watching: Page) -> None:
    before = step_shown(watching)
    with timed("reloaded page until it shows the run"):
        watching.reload()
        assert step_shown(watching) >= before
    expect(watching.locator("#train-chart .aw-has-points")).to_be_visible(timeout=PATIENCE_MS)


def test_a_second_tab_shows_the_same_progress(watching: Page, visits: Visits) -> None:
    with timed("second tab until it shows the run"):
        other = visits.open()
        expect(other.locator(".aw-job-title")).to_have_text("Training watched")
        assert step_shown(other) > 0
    expect(other.locator("#train-chart .aw-has-points")).to_be_visible(timeout=PATIENCE_MS)
    first = step_shown(watching)
    other.wait_for_timeout(3000)  # each tab is drawn every two seconds at most
    assert step_shown(other) >= first


def test_steps_are_shown_without_redrawing_the_tab(watching: Page) -> None:
    watching.wait_for_timeout(3000)  # a page that was opened is redrawn once more
    redraws = []
    watching.on("request", lambda asked: redraws.append(asked.url) if "predict" in asked.url else 0)
    first = step_shown(watching)
    while step_shown(watching) < first + 3:
        watching.wait_for_timeout(200)

    assert len(redraws) <= 1  # one in twenty seconds


def test_zoom_is_kept_while_points_arrive(watching: Page) -> None:
    watching.evaluate(
        "Plotly.relayout(document.querySelector('#train-chart .aw-plot'), {'xaxis.range': [0, 2]})"
    )
    more_points(watching, 3)
    assert watching.evaluate(ZOOM) == [0, 2]


def test_an_update_of_the_chart_weighs_at_most_1_kb(watching: Page) -> None:
    news = []
    while len(news) < 3:
        with watching.expect_response(is_update, timeout=PATIENCE_MS) as caught:
            pass
        answer = caught.value.json()
        if isinstance(answer, dict) and answer.get("s") and not answer["reset"]:
            news.append(len(caught.value.request.post_data or "") + len(caught.value.body()))
    assert max(news) <= 1024


def is_update(response: Response) -> bool:
    return "component_server" in response.url


def test_the_chart_says_in_words_what_it_shows(watching: Page) -> None:
    plot = watching.get_by_role("img", name="Loss curve")
    expect(plot).to_be_visible()
    expect(watching.locator("#train-chart .aw-only-read")).to_contain_text("training loss")
    expect(watching.get_by_role("button", name="Share chart")).to_have_count(0)
    watching.get_by_text("Learning rate", exact=True).last.click()
    expect(watching.locator("#train-chart .aw-rate .scatterlayer")).to_be_visible()


def test_typing_is_not_disturbed_by_the_timer(watching: Page) -> None:
    name = watching.locator("#train-name input")
    name.fill("my own ")
    watching.wait_for_timeout(2500)
    name.press_sequentially("name")
    watching.wait_for_timeout(1500)
    expect(name).to_have_value("my own name")
    expect(name).to_be_focused()


def test_a_second_training_is_offered_to_the_queue(watching: Page) -> None:
    start = watching.locator("#train-start")
    expect(start).to_have_text(re.compile("Add .+ to the queue"))
    expect(start).to_be_enabled()
    expect(watching.locator(".aw-card").first).to_contain_text("watched is training")
