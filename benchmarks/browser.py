"""The app's page in a real headless Chromium."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

START = "button#train-start, #train-start button"
READY = "button#train-start:not([disabled]), #train-start button:not([disabled])"
TIMEOUT_MS = 60_000


@contextmanager
def open_page(url: str) -> Iterator[Page]:
    """Start Chromium and open the app's page in it."""
    with empty_page() as page:
        visit(page, url)
        yield page


def visit(page: Page, url: str) -> None:
    """Open the app's page and wait until it is drawn."""
    page.goto(url)
    page.wait_for_selector(START)


@contextmanager
def empty_page() -> Iterator[Page]:
    """Start Chromium with an empty page."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_context().new_page()  # a second tab shares its cache
            page.set_default_timeout(TIMEOUT_MS)
            yield page
        finally:
            browser.close()


def press_train(page: Page) -> None:
    """Press Train."""
    page.locator(START).first.click()


def wait_for_check(page: Page) -> None:
    """Wait until the page's check of the settings lets Train be pressed."""
    page.wait_for_selector(READY)


def wait_for_curve(page: Page) -> None:
    """Wait until the chart shows a point."""
    page.wait_for_function(
        "() => Number(document.querySelector('#train-chart .aw-chart')?.dataset.points) > 0"
    )
