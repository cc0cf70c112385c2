"""The timer of Gradio's loading screen, which goes on when that is gone: our page ends it."""

import subprocess
import sys

import gradio
import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import Visits, free_port, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.slow]
COUNT_FRAMES = """
const ask = window.requestAnimationFrame;
window.frames_asked = 0;
window.requestAnimationFrame = (call) => {
  window.frames_asked += 1;
  return ask.call(window, call);
};
"""
PLAIN = """
import sys, gradio
with gradio.Blocks(analytics_enabled=False) as demo:
    gradio.Textbox(label="Name")
demo.launch(server_port=int(sys.argv[1]), quiet=True)
"""


def frames_asked(page: Page) -> int:
    """Return how many frames a page asks for in a second in which nothing moves."""
    page.wait_for_timeout(6000)
    page.evaluate("window.frames_asked = 0")
    page.wait_for_timeout(1000)
    return int(page.evaluate("window.frames_asked"))


def test_a_page_on_which_nothing_moves_asks_for_no_frames(visits: Visits) -> None:
    page = visits.browser.new_context().new_page()
    page.add_init_script(COUNT_FRAMES)
    page.goto(visits.url)
    page.locator(".aw-phase", has_text="Ready").wait_for(timeout=120_000)

    assert frames_asked(page) < 10


def test_a_plain_page_of_gradio_still_asks_for_every_frame(browser: Browser) -> None:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", PLAIN, str(port)])
    try:
        page = browser.new_context().new_page()
        page.add_init_script(COUNT_FRAMES)
        wait_for(lambda: opened(page, port), "The plain page does not open.")
        page.get_by_label("Name").wait_for()
        asked = frames_asked(page)
    finally:
        process.kill()
        process.wait()

    version = gradio.__version__
    guard = "ui/app/polling.js (the loading screen)"
    assert asked > 10, f"Gradio {version} ends the timer itself: the guard in {guard} may go."


def opened(page: Page, port: int) -> bool:
    try:
        return page.goto(f"http://127.0.0.1:{port}/") is not None
    except Exception:  # nobody listens yet
        return False
