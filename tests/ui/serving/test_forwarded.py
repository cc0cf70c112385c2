"""Behind a proxy under a path: everything works, and headers count from trusted proxies alone."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from tests.path_proxy import Proxy, proxied
from tests.ui.serving.conftest import NAME, SECRET, opened
from ui.charts.loss_chart import plotly_script
from ui.serving.forwarded import Forwarded
from ui.serving.options import Credentials

KINDS = {"strips the path": (True, True), "keeps path and host": (False, False)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with opened(tmp_path_factory.mktemp("behind"), root_path="/workbench") as url:
        yield url


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def proxy(page: str, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    strips, forwards = request.param
    with proxied(page, strips=strips, forwards=forwards) as proxy:
        yield proxy


def config_of(page: httpx.Response) -> dict:
    found = re.search(r"window.gradio_config = (.*?);</script>", page.text)
    assert found
    return json.loads(found[1])


def test_the_page_knows_the_address_that_the_browser_sees(proxy: Proxy) -> None:
    page = httpx.get(proxy.url)
    assert config_of(page)["root"] == proxy.url.rstrip("/")
    for script in re.findall(r'src="\./(assets/[^"]+)"', page.text):
        answer = httpx.get(f"{proxy.url}{script}")
        assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff")
        assert "javascript" in answer.headers["content-type"]


def test_the_path_without_its_slash_leads_to_the_page(proxy: Proxy) -> None:
    answer = httpx.get(proxy.url.rstrip("/"), follow_redirects=True)
    assert "gradio_config" in answer.text


def test_a_program_uses_everything_through_the_proxy(proxy: Proxy) -> None:
    client = Client(proxy.url, verbose=False)
    assert client.predict(api_name="/snapshot")["base"]["source"] == "starter"
    job = client.submit(
        {"messages": [{"role": "user", "content": "Hello?"}], "variant": []}, api_name="/chat"
    )
    job.result(timeout=30)
    assert len(job.outputs()) > 1  # it came in pieces
    client.close()
    assert proxy.failures == []


def test_files_go_up_and_come_down(proxy: Proxy) -> None:
    upload = f"{proxy.url}gradio_api/upload"
    own = proxy.url.removesuffix("/workbench/")
    [path] = httpx.post(
        upload, files={"files": ("a.txt", b"hello")}, headers={"origin": own}
    ).json()
    assert httpx.get(f"{proxy.url}gradio_api/file={path}").content == b"hello"
    assert httpx.post(upload, headers={"origin": "http://127.0.0.1:1"}).status_code == 403
    plotly = httpx.get(f"{proxy.url}gradio_api/file={plotly_script()}")
    assert "javascript" in plotly.headers["content-type"]


def test_signing_in_works_under_the_path_and_counts_the_real_client(tmp_path: Path) -> None:
    options = {"credentials": Credentials(NAME, SECRET), "root_path": "/workbench"}
    with opened(tmp_path, **options) as page, proxied(page) as proxy:
        wrong = {"username": NAME, "password": "x"}
        codes = [httpx.post(f"{proxy.url}login", data=wrong).status_code for _ in range(12)]
        assert 429 in codes
        proxy.client = "198.51.100.4"  # another person behind the same proxy
        with httpx.Client(base_url=proxy.url) as visitor:
            assert 'action="/workbench/login"' in visitor.get("").text
            right = {"username": NAME, "password": SECRET}
            answer = visitor.post("login", data=right, headers={"accept": "text/html"})
            assert (answer.status_code, answer.headers["location"]) == (303, "/workbench/")
            assert "path=/workbench/" in answer.headers["set-cookie"].lower()
            assert "gradio_config" in visitor.get("").text
        client = Client(proxy.url, verbose=False, auth=(NAME, SECRET))
        assert client.predict(api_name="/snapshot")["base"]["source"] == "starter"
        client.close()


def test_the_whole_address_serves_a_proxy_that_tells_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, root_path="https://example.com/workbench") as page:
        for path in ("", "workbench/"):
            assert config_of(httpx.get(f"{page}{path}"))["root"] == "https://example.com/workbench"
        own = {"origin": "https://example.com"}
        file = {"files": ("a.txt", b"x")}
        assert httpx.post(f"{page}gradio_api/upload", files=file, headers=own).status_code == 200


# --- whom to believe ---


async def told(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what the app is told of a request."""
    request = Request(scope)
    assert request.client
    names = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-gradio-server")
    kept = {name: request.headers.get(name) for name in names if name in request.headers}
    answer = {"client": request.client.host, "scheme": request.url.scheme, "kept": kept}
    answer |= {"path": scope["path"], "root_path": scope["root_path"]}
    await JSONResponse(answer)(scope, receive, send)


async def told_through(peer: str, headers: list[tuple[str, str]], path: str = "/") -> dict:
    app = Forwarded(told, ["127.0.0.0/8", "10.0.0.2"], "/w")
    transport = httpx.ASGITransport(app, client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return (await client.get(path, headers=headers)).json()


SAID = [
    ("x-forwarded-for", "1.1.1.1"),
    ("x-forwarded-for", "203.0.113.7, 10.0.0.2"),
    ("x-forwarded-host", "example.com, inner"),
    ("x-forwarded-host", "evil.example"),
    ("x-forwarded-proto", "https, http"),
    ("x-gradio-server", "http://evil.example"),
]


@pytest.mark.anyio
@pytest.mark.parametrize("peer", ["127.0.0.1", "10.0.0.2"])
async def test_a_trusted_proxy_is_believed(peer: str) -> None:
    answer = await told_through(peer, SAID)
    assert (answer["client"], answer["scheme"]) == ("203.0.113.7", "https")
    assert answer["kept"] == {
        "x-forwarded-for": "1.1.1.1, 203.0.113.7, 10.0.0.2",
        "x-forwarded-host": "example.com",
        "x-forwarded-proto": "https",
    }


@pytest.mark.anyio
@pytest.mark.parametrize("peer", ["10.0.0.3", "203.0.113.9"])
async def test_nobody_else_is(peer: str) -> None:
    answer = await told_through(peer, SAID)
    assert (answer["client"], answer["scheme"], answer["kept"]) == (peer, "http", {})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "seen"), [("/", "/"), ("/w/", "/"), ("/w/a b", "/a b"), ("/wide", "/wide")]
)
async def test_the_path_of_the_proxy_is_removed_where_it_is_kept(path: str, seen: str) -> None:
    answer = await told_through("127.0.0.1", [], path)
    assert (answer["path"], answer["root_path"]) == (seen, "")
