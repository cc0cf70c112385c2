"""What somebody does on their first visit: press Start, watch, and try the result."""

import json
import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import (
    PATIENCE_MS,
    PROJECT,
    App,
    Client,
    Visits,
    idle,
    ready,
    save_picture,
)
from ui.chat.chat_state import Column, Exchange
from ui.chat.conversation import answers

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def trained(app: App) -> str:
    """An adapter of this module's own, for the tests that need one."""
    client = app.client()
    names = [adapter["name"] for adapter in idle(client)["adapters"]]
    if "visitor" not in names:
        client.predict({"name": "visitor", "max_steps": 6}, api_name="/train")
        idle(client)
    client.close()
    return "visitor"


def test_start_needs_nothing_else_and_the_adapter_answers_beside_the_base(page: Page) -> None:
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_label("Data")).to_have_value(re.compile("Pirate talk"))
    ready(page)
    expect(page.locator(".aw-card").first).to_contain_text("layers matched")
    expect(page.locator("#data-line")).to_contain_text("held out")
    button = page.locator("#train-start")
    expect(button).to_have_text(re.compile(r"Train pirate"))
    button.click()

    expect(page.locator("#train-chart .aw-has-points")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator(".aw-numbers")).to_contain_text("tokens/s")
    expect(page.locator(".aw-job")).to_contain_text(re.compile(r"\d+ %"))
    first = int(page.locator("#train-chart .aw-chart").get_attribute("data-points") or 0)
    page.wait_for_function(
        "n => +document.querySelector('#train-chart .aw-chart').dataset.points > n + 3",
        arg=first,
        timeout=PATIENCE_MS,
    )
    save_picture(page, "train-running", full=False)

    tried = page.get_by_role("button", name="Try it in Chat").first
    expect(tried).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator(".aw-result")).to_contain_text("Held-out exact match")
    expect(page.locator(".aw-evidence")).to_contain_text("Verified: the saved adapter gives")
    expect(page.locator("#train-chart .aw-chart-title")).to_contain_text("Loss fell from")
    page.wait_for_timeout(2500)
    save_picture(page, "train-done", full=False)
    (PROJECT / "docs").mkdir(exist_ok=True)
    page.screenshot(path=PROJECT / "docs" / "screenshot.png")

    tried.click()
    expect(page.get_by_role("tab", name="Chat")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#chat-prompt textarea")).not_to_have_value("")
    page.locator("#chat-send").click()
    columns = page.locator("#chat-answers [data-column]")
    expect(columns).to_have_count(2)
    expect(columns.last.locator(".said")).to_contain_text("Arr", timeout=PATIENCE_MS)
    expect(page.locator("#chat-send")).to_be_enabled()
    expect(page.locator(".aw-caret")).to_have_count(0)
    expect(columns.first.locator(".said")).not_to_contain_text("Arr")
    expect(columns.last.locator(".aw-differs").first).to_be_visible()
    page.reload()
    page.get_by_role("tab", name="Chat").click()
    expect(columns.last.locator(".said")).to_contain_text("Arr")
    save_picture(page, "chat", full=False)


def test_a_text_is_scored_by_base_and_adapter(page: Page, trained: str) -> None:
    page.get_by_role("tab", name="Chat").click()
    page.locator("#score-text textarea").fill("Arr, the cat be on the mat!")
    page.locator("#score-go").click()
    expect(page.locator("#scores tbody tr")).to_have_count(2)
    expect(page.locator("#scores")).to_contain_text("nats")


def test_the_model_s_view_of_the_data_is_tinted(page: Page) -> None:
    ready(page)
    page.get_by_role("button", name="Preview examples").click()
    expect(page.locator("#train-preview")).to_contain_text("Arr")
    page.wait_for_timeout(300)
    save_picture(page, "train-preview")


def test_a_menu_closes_when_its_field_is_left(page: Page) -> None:
    ready(page)
    page.locator("#train-data input").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("starter:polite")
    page.keyboard.press("Tab")
    expect(page.locator("#train-data input")).to_have_value(re.compile("Good manners"))
    page.wait_for_timeout(500)

    expect(page.locator("[role=option]:visible")).to_have_count(0)


def test_a_taken_name_is_offered_a_free_one(page: Page, trained: str) -> None:
    ready(page)
    page.locator("#train-name input").fill(trained)
    offer = page.get_by_role("button", name="Call it visitor 2")
    expect(offer).to_be_visible()
    expect(page.locator("#train-start")).to_be_disabled()
    offer.click()
    expect(page.locator("#train-name input")).to_have_value("visitor 2")
    ready(page)


def test_an_adapter_is_turned_on_for_all_tabs(visits: Visits, client: Client, trained: str) -> None:
    one, other = visits.open(), visits.open()
    one.get_by_role("tab", name="Load").click()
    row = one.locator("#adapters tr", has_text=trained)
    row.get_by_role("button", name="Turn on").click()
    expect(other.get_by_role("button", name=f"On {trained}")).to_be_visible()
    expect(row.get_by_role("button", name="Turn off")).to_be_visible()
    row.get_by_role("button", name="Turn off").click()
    expect(other.get_by_role("button", name="On base only")).to_be_visible()
    idle(client)


def test_a_copy_is_saved_and_verified(page: Page, app: App, trained: str) -> None:
    page.get_by_role("tab", name="Load").click()
    page.locator("#adapters tr", has_text=trained).locator("td").nth(2).click()
    folder = app.workspace / "copies" / "visitor"
    page.get_by_label("Save a copy to").fill(str(folder))
    page.get_by_role("button", name="Save a copy").click()
    proof = page.locator(".aw-evidence", has_text="Verified: the copy gives the same")
    expect(proof).to_be_visible()
    assert (folder / "adapter_model.safetensors").is_file()


def test_the_facts_of_the_base_are_shown(page: Page) -> None:
    page.get_by_role("tab", name="Load").click()
    facts = page.locator(".aw-facts").first
    for words in ("llama", "measured", "predicted", "Chat template", "fp32"):
        expect(facts).to_contain_text(words)


def test_an_unknown_model_is_a_sentence(page: Page, client: Client) -> None:
    idle(client)
    page.get_by_role("tab", name="Load").click()
    source = page.get_by_label("Base model")
    source.fill("/nowhere/at/all")
    source.press("Enter")
    page.locator("#load-go").click()
    note = page.locator(".aw-note.bad").first
    expect(note).to_be_visible()
    expect(note).not_to_contain_text("Traceback")
    client.predict({"source": "starter"}, api_name="/load_model")


def draw_columns(page: Page, *, turns: int) -> None:
    """Draw six columns as the Chat tab does, in place of those that it has."""
    said = [Exchange(n, f"Question {n}?", f"Answer {n}. " * 20, coming=False) for n in range(turns)]
    tree = answers([Column(f"c{n}", f"adapter {n}", [], (), tuple(said)) for n in range(6)])
    page.evaluate(
        f"""() => drawSafely(document.querySelector('#chat-answers'),
        {{ value: {json.dumps(tree)} }}, () => 0, () => 0)"""
    )


def test_six_columns_fit_and_follow_their_newest_answer(visits: Visits) -> None:
    page = visits.open(width=1280)
    page.get_by_role("tab", name="Chat").click()
    columns = page.locator("#chat-answers .aw-answers")
    expect(columns).to_be_visible()
    draw_columns(page, turns=8)
    assert columns.evaluate("e => e.scrollWidth <= e.clientWidth")

    scroller, first = columns.locator(".aw-turns").nth(5), columns.locator(".aw-turn").first
    turns = scroller.locator(".aw-turn")
    tops = turns.evaluate_all("all => all.map((e) => e.getBoundingClientRect().top)")
    ends = turns.evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().top + e.scrollHeight)"
    )
    assert all(top >= end for top, end in zip(tops[1:], ends, strict=False))
    expect(turns.last).to_be_in_viewport(ratio=0.9)
    expect(first).not_to_be_in_viewport()

    scroller.evaluate("e => e.scrollBy(0, -5000)")
    draw_columns(page, turns=9)
    expect(turns.first).to_be_in_viewport()  # somebody reads there
    expect(columns.locator(".aw-turns").first.locator(".aw-turn").last).to_be_in_viewport()


@pytest.mark.parametrize(("dark", "scheme"), [(True, "dark"), (False, "normal")])
def test_scrollbars_are_dark_where_the_page_is(visits: Visits, dark: bool, scheme: str) -> None:
    page = visits.open(dark=dark)
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == scheme


@pytest.mark.parametrize("tab", ["Train", "Load", "Combine", "Merge", "Hot-swap", "Chat", "Runs"])
@pytest.mark.parametrize(("look", "width"), [("dark", 1400), ("phone", 390)])
def test_every_tab_fits_dark_and_on_a_phone(
    visits: Visits, trained: str, tab: str, look: str, width: int
) -> None:
    page = visits.open(width=width, height=900, dark=look == "dark")
    page.get_by_role("tab", name=tab).click()
    if tab == "Runs":
        page.locator("tr.pick").first.click()
        expect(page.locator("#runs-chart .aw-has-points")).to_be_visible()
    page.wait_for_timeout(1200)
    save_picture(page, f"{tab.lower()}-{look}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
