"""The app's page in a real headless Chromium."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

START = "#train-start button, button#train-start"
TIMEOUT_MS = 60_000


@contextmanager
def open_page(url: str) -> Iterator[Page]:
    """Open the app's page and wait until Train can be pressed or is at least drawn."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.set_default_timeout(TIMEOUT_MS)
            page.goto(url)
            page.wait_for_selector(START)
            yield page
        finally:
            browser.close()


def press_train(page: Page) -> None:
    """Press Train as soon as the page's check allows it."""
    page.wait_for_selector(START)
    page.locator(START).first.click()


def wait_for_curve(page: Page) -> None:
    """Wait until the chart shows a point."""
    page.wait_for_function(
        "() => Number(document.querySelector('#train-chart .aw-chart')?.dataset.points) > 0"
    )
