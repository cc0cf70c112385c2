"""The real app in a process of its own, and a real browser that looks at it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from gradio_client import Client
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Playwright,
    expect,
    sync_playwright,
)

from tests.engines import engines

PROJECT = Path(__file__).resolve().parents[2]
OUTPUT = PROJECT / "tests" / "output"
PATIENCE_MS = 300_000
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
expect.set_options(timeout=60_000)


@dataclass(frozen=True)
class App:
    """A running app."""

    url: str
    process: subprocess.Popen
    workspace: Path

    def client(self) -> Client:
        return Client(self.url, verbose=False)

    def worker(self) -> psutil.Process:
        """The model process: a child that runs the engine."""
        return engines(psutil.Process(self.process.pid))[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def opened_app(workspace: Path, **environment: str) -> Iterator[App]:
    """Start app.py as a person would, and end it with the signal that Ctrl-C sends."""
    port = free_port()
    log = (workspace.parent / "app.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "app.py", "--no-browser", "--port", str(port), "--workspace", workspace],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    app = App(f"http://127.0.0.1:{port}/", process, workspace)
    try:
        wait_for(lambda: answers(app), f"The app does not open; see {log.name}.")
        yield app
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        log.close()


def answers(app: App) -> bool:
    assert app.process.poll() is None, "The app ended."
    try:
        return httpx.get(app.url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(check: Callable[[], object], complaint: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.2)


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One app for all browser tests; each leaves it idle.

    Its workspace lies outside its temporary folder, as a person's does: Gradio serves the latter.
    """
    folder = tmp_path_factory.mktemp("app")
    (folder / "temporary").mkdir()
    with opened_app(folder / "workspace", TMPDIR=str(folder / "temporary")) as app:
        yield app


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert path, "No Chromium: set CHROMIUM to its path, or run `python3 start.py --test`."
    browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
    yield browser
    browser.close()


@dataclass
class Visits:
    """Opens the page, and remembers what went wrong in it."""

    browser: Browser
    url: str
    troubles: list[str]

    def open(self, *, width: int = 1400, height: int = 900, dark: bool = False) -> Page:
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", self._note_request)
        page.on("pageerror", lambda error: self.troubles.append(f"script error: {error}"))
        page.on("console", self._note_message)
        page.goto(self.url)
        expect(page.locator(".aw-phase")).to_be_visible()
        return page

    def _note_message(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            self.troubles.append(message.text)

    def _note_request(self, request: object) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.hostname != "127.0.0.1":
            self.troubles.append(f"external request: {request.url}")


@pytest.fixture
def visits(app: App, browser: Browser) -> Iterator[Visits]:
    """Open pages on the shared app; no script error and no external request is allowed."""
    visits = Visits(browser, app.url, [])
    yield visits
    for context in browser.contexts:
        context.close()
    assert visits.troubles == []


@pytest.fixture
def page(visits: Visits) -> Page:
    return visits.open()


@pytest.fixture
def client(app: App) -> Iterator[Client]:
    client = app.client()
    yield client
    client.close()


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long something took; a test does not judge it."""
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.2f} s")


def idle(client: Client, seconds: float = 300) -> dict:
    """Wait until no job runs and the base is there; returns the snapshot."""
    state: dict = {}

    def is_idle() -> bool:
        state.update(client.predict(api_name="/snapshot"))
        return state["job"] is None and state["base"] is not None

    wait_for(is_idle, "The app does not become idle.", seconds)
    return state


def ready(page: Page) -> None:
    """Wait until the start button can be pressed."""
    expect(page.locator("#train-start")).to_be_enabled(timeout=PATIENCE_MS)


def step_shown(page: Page) -> int:
    """The step that the running run shows."""
    numbers = page.locator(".aw-stage .aw-numbers strong").first
    expect(numbers).to_have_text(re.compile(r"[\d,]+ of [\d,]+"))
    return int(numbers.inner_text().split(" of ")[0].replace(",", ""))


def save_picture(page: Page, name: str, *, full: bool = True) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=OUTPUT / f"{name}.png", full_page=full)
