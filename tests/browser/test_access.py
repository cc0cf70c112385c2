"""The page under its Content-Security-Policy, directly and behind a proxy, and who may reach it."""

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
from gradio_client import Client
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import PATIENCE_MS, App, Visits, idle, opened_app, save_picture
from tests.path_proxy import proxied

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PATH = "/workbench"


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """An app that is served under a path, with a finished run."""
    workspace = tmp_path_factory.mktemp("behind") / "workspace"
    with opened_app(workspace, GRADIO_ROOT_PATH=PATH) as app:
        client = app.client()
        idle(client)
        client.predict({"name": "guest", "max_steps": 4}, api_name="/train")
        idle(client)
        client.close()
        yield app


@pytest.fixture(params=["directly", "proxy that strips the path", "proxy that keeps it"])
def address(behind: App, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a browser finds that app."""
    if request.param == "directly":
        yield behind.url
        return
    strips = request.param == "proxy that strips the path"
    with proxied(behind.url, PATH, strips=strips, forwards=strips) as proxy:
        yield proxy.url
        # Both at the root of the host: Gradio 6.31's manifest, which nothing needs, and an icon.
        assert set(proxy.failures) <= {"/manifest.json", "/favicon.ico"}


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Page]:
    """The page there; it may violate nothing, and asks nobody else."""
    visits = Visits(browser, address, [])
    page = visits.open()
    yield page
    page.context.close()
    assert visits.troubles == []


def turn_to(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    expect(page.get_by_role("tab", name=tab, exact=True)).to_have_attribute("aria-selected", "true")


def test_every_screen_works_under_the_policy(
    visit: Page, address: str, behind: App, tmp_path: Path
) -> None:
    policies = visit.evaluate("fetch('.').then(r => r.headers.get('content-security-policy'))")
    assert "connect-src 'self'" in policies
    train_and_watch(visit)
    upload_data(visit, tmp_path)
    turn_to(visit, "Load")
    download_adapter(visit)
    for tab in ("Combine", "Merge", "Hot-swap"):
        turn_to(visit, tab)
        expect(visit.get_by_role("tabpanel").locator(":scope:visible").first).to_be_visible()
        visit.wait_for_timeout(500)
    chat(visit)
    turn_to(visit, "Runs")
    visit.locator("tr.pick:visible").first.click()
    expect(visit.locator("#runs-chart .aw-has-points")).to_be_visible(timeout=PATIENCE_MS)
    expect(visit.locator("#runs-chart .main-svg").first).to_be_visible()


def train_and_watch(page: Page) -> None:
    """Train a little; the live chart draws with plotly, which comes from this machine."""
    expect(page.locator("#train-start")).to_be_enabled(timeout=PATIENCE_MS)
    name = f"guest of {urlsplit(page.url).port}"
    client_of(page).predict({"name": name, "max_steps": 8}, api_name="/train")
    expect(page.locator("#train-chart .aw-has-points")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#train-chart .main-svg").first).to_be_visible()
    idle(client_of(page))


def client_of(page: Page) -> Client:
    return Client(page.url, verbose=False)


def upload_data(page: Page, tmp_path: Path) -> None:
    """Give the page a file of one's own."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "Who are you?", "completion": "A guest."}\n' * 12)
    with page.expect_file_chooser() as chooser:
        page.locator("#train-upload").click()
    chooser.value.set_files(file)
    expect(page.locator("#train-data input")).to_have_value(re.compile("mine"))


def download_adapter(page: Page) -> None:
    """Take an adapter away as a zip."""
    page.locator("#adapters tr", has_text="guest").first.locator("td").nth(2).click()
    page.locator("#pack").click()
    button = page.get_by_text(re.compile(r"Download guest.*\.zip"))
    expect(button).to_be_visible(timeout=PATIENCE_MS)
    with page.expect_download() as caught:
        button.click()
    assert Path(caught.value.path()).read_bytes()[:2] == b"PK"


def chat(page: Page) -> None:
    """Ask, and get the answer in pieces."""
    turn_to(page, "Chat")
    page.locator("#chat-prompt textarea").fill("Where is the cat?")
    page.locator("#chat-send").click()
    said = page.locator("#chat-answers [data-column]").first.locator(".said").last
    expect(said).not_to_be_empty(timeout=PATIENCE_MS)
    expect(page.locator("#chat-send")).to_be_enabled(timeout=PATIENCE_MS)


class Elsewhere(BaseHTTPRequestHandler):
    """Another web site."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>Elsewhere</title>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere(browser: Browser) -> Iterator[Page]:
    """A page of another web site on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    page = browser.new_context().new_page()
    page.goto(f"http://localhost:{server.server_address[1]}/")
    yield page
    page.context.close()
    server.shutdown()
    server.server_close()
    thread.join(10)


SEND = """async (url) => {
  const form = new FormData();
  form.append('files', new Blob(['from elsewhere']), 'elsewhere.txt');
  await fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include', body: form});
}"""
SUBMIT = """(url) => {
  const form = document.body.appendChild(document.createElement('form'));
  const file = form.appendChild(document.createElement('input'));
  const files = new DataTransfer();
  files.items.add(new File(['from elsewhere'], 'elsewhere.txt'));
  Object.assign(file, {type: 'file', name: 'files'});
  file.files = files.files;
  Object.assign(form, {action: url, method: 'post', enctype: 'multipart/form-data'});
  form.submit();
}"""


def test_a_page_of_another_site_uploads_and_reads_nothing(elsewhere: Page, app: App) -> None:
    upload = f"{app.url}gradio_api/upload"
    reads = f"fetch('{app.url}config').then(() => 'read', () => 'refused')"

    assert elsewhere.evaluate(reads) == "refused"
    elsewhere.evaluate(SEND, upload)
    with elsewhere.expect_navigation():
        elsewhere.evaluate(SUBMIT, upload)

    expect(elsewhere.locator("body")).to_contain_text("comes from a page of another site")
    assert list(app.workspace.rglob("elsewhere.txt")) == []


def sign_in(page: Page, secret: str) -> None:
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(secret)
    page.get_by_role("button", name="Sign in").click()


def test_a_visitor_signs_in_on_the_page(browser: Browser, tmp_path: Path) -> None:
    secret = {"ADAPTER_WORKBENCH_PASSWORD": "ann:correct horse"}
    with opened_app(tmp_path / "workspace", **secret) as app:
        page = browser.new_context().new_page()
        page.goto(app.url)
        said = ""
        while "Too many wrong passwords" not in said:  # the wait grows past any slowness
            sign_in(page, "battery staple")
            said = page.get_by_role("alert").inner_text()
        save_picture(page, "sign-in", full=False)
        seconds = re.search(r"Try again in (\d+) s", said)
        assert seconds
        page.wait_for_timeout(1000 * int(seconds[1]) + 500)
        sign_in(page, "correct horse")
        expect(page.locator(".aw-phase")).to_be_visible()
        expect(page.locator("#train-start")).to_be_enabled(timeout=PATIENCE_MS)
        page.context.close()
