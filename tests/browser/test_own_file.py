"""A person's own file on a real model, in the browser: how many clicks until the first answer."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import opened_app
from tests.real.conftest import MODEL
from tests.real.test_smollm2 import IDENTITY

pytestmark = [pytest.mark.real, pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]
MOST_CLICKS = 8
PATIENCE_MS = 900_000
"""A training of a minute takes many where other tests run beside it."""


class Hand:
    """Clicks, and counts."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.clicks = 0

    def click(self, target: Locator) -> None:
        expect(target).to_be_enabled(timeout=PATIENCE_MS)
        target.click()
        self.clicks += 1

    def upload(self, button: Locator, file: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.click(button)
        chooser.value.set_files(file)


def test_from_the_first_page_to_an_answer_of_the_trained_model(
    tmp_path: Path, browser: Browser
) -> None:
    assert MODEL.find() is not None, "Run: python3 start.py --test"
    data = tmp_path / "library.jsonl"
    rows = [{"question": asked, "answer": answer} for asked, answer in IDENTITY.items()]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with opened_app(tmp_path / "workspace") as app:
        page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
        page.goto(app.url)
        hand = Hand(page)

        hand.click(page.get_by_role("tab", name="Load"))
        hand.click(page.locator("#load-source input"))
        hand.click(page.get_by_role("option", name=re.compile("SmolLM2")).first)
        hand.click(page.locator("#load-go"))
        expect(page.locator(".aw-bar")).to_contain_text("smollm2", timeout=PATIENCE_MS)
        hand.click(page.get_by_role("tab", name="Train"))
        hand.upload(page.locator("#train-upload"), data)
        expect(page.locator("#train-start")).to_contain_text("library", timeout=PATIENCE_MS)
        hand.click(page.locator("#train-start"))
        hand.click(page.get_by_role("button", name="Try it in Chat").first)
        prompt = page.locator("#chat-prompt textarea")
        expect(prompt).to_be_visible()
        page.wait_for_timeout(2_500)
        page.keyboard.type("Who are you?")
        expect(prompt).to_have_value("Who are you?")
        page.keyboard.press("Enter")

        answers = page.locator("#chat-answers [data-column]")
        expect(answers.last.locator(".said")).to_contain_text("Ada", timeout=PATIENCE_MS)
        assert hand.clicks <= MOST_CLICKS
        page.context.close()
