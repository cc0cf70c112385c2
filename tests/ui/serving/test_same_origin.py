"""Pages of other sites, and other host names, reach nothing; programs and the own page do."""

import httpx
import pytest
from gradio_client import Client
from starlette.responses import PlainTextResponse

from ui.serving.headers import SecurityHeaders
from ui.serving.options import Options
from ui.serving.same_origin import SameOrigin, allowed_hosts, origin_of

ELSEWHERE = ("http://localhost:9999", "http://evil.example", "https://evil.example", "null")
FILE = {"files": ("a.txt", b"x")}
LINK = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "sec-fetch-site": "cross-site"}


@pytest.mark.parametrize("origin", ELSEWHERE)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "GET"])
def test_another_origin_is_refused_without_cors(open_page: str, origin: str, method: str) -> None:
    headers = {"origin": origin, "access-control-request-method": "POST"}
    answer = httpx.request(method, f"{open_page}gradio_api/upload", headers=headers)

    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ELSEWHERE)
def test_a_form_of_another_site_cannot_upload(open_page: str, origin: str) -> None:
    upload = f"{open_page}gradio_api/upload"

    assert httpx.post(upload, files=FILE, headers={"origin": origin}).status_code == 403
    for site in ("cross-site", "same-site"):
        assert httpx.post(upload, files=FILE, headers={"sec-fetch-site": site}).status_code == 403


def test_the_own_page_and_programs_can_upload(open_page: str) -> None:
    upload, own = f"{open_page}gradio_api/upload", open_page.rstrip("/")
    for headers in (
        {},
        {"origin": own},
        {"origin": own.upper()},
        {"sec-fetch-site": "same-origin"},
    ):
        answer = httpx.post(upload, files=FILE, headers=headers)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]
    client = Client(open_page, verbose=False)
    assert client.predict(api_name="/snapshot")["base"]["source"] == "starter"
    client.close()


@pytest.mark.parametrize(
    "path",
    [
        "logout", "gradio_api/deep_link?session_hash=x", "gradio_api/heartbeat/x",
        "gradio_api/startup-events", "config", "gradio_api/file=/etc/hosts", "theme.css",
    ],
)  # fmt: skip
def test_another_site_reaches_no_address_but_the_page(open_page: str, path: str) -> None:
    image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    for headers in (image, LINK):
        with httpx.stream("GET", f"{open_page}{path}", headers=headers) as answer:
            assert answer.status_code == 403


def test_a_link_on_another_site_opens_the_page(open_page: str) -> None:
    assert httpx.get(open_page, headers=LINK).status_code == 200
    assert httpx.get(open_page, headers={**LINK, "sec-fetch-dest": "iframe"}).status_code == 200
    assert httpx.get(open_page, headers={**LINK, "sec-fetch-dest": "object"}).status_code == 403
    assert httpx.post(open_page, headers=LINK).status_code == 403


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "a/localhost", "[", ""])
def test_another_host_name_is_refused(open_page: str, name: str) -> None:
    """So that no site can have its own name lead here (DNS rebinding)."""
    assert httpx.get(open_page, headers={"host": name}).status_code == 400
    forwarded = {"x-forwarded-host": "localhost"}
    assert httpx.get(open_page, headers={"host": name, **forwarded}).status_code == 400
    if name:
        assert httpx.get(open_page, headers={"x-forwarded-host": name}).status_code == 400


def test_a_visitor_cannot_move_the_page_to_another_server(open_page: str) -> None:
    """Gradio 6.31 takes the address of its own server from this header."""
    page = httpx.get(open_page, headers={"x-gradio-server": "http://evil.example"})
    assert "evil.example" not in page.text


@pytest.mark.parametrize(
    "path",
    ["", "config", "no/such/page", "static/img/logo_nosize.svg", "theme.css", "gradio_api/info",
     "gradio_api/file=/etc/passwd", "login", "gradio_api/queue/data"],
)  # fmt: skip
def test_every_response_says_what_a_browser_may_do(open_page: str, path: str) -> None:
    answers = [
        httpx.get(f"{open_page}{path}"),
        httpx.post(f"{open_page}{path}", headers={"origin": "http://evil.example"}),
        httpx.get(f"{open_page}{path}", headers={"host": "evil.example"}),
    ]
    for answer in answers:
        policy = answer.headers["content-security-policy"].split("; ")
        assert {"default-src 'self'", "frame-ancestors 'self'", "connect-src 'self'"} < set(policy)
        assert {"base-uri 'self'", "object-src 'none'", "form-action 'self'"} < set(policy)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"


@pytest.mark.anyio
async def test_the_hub_may_show_a_space_in_a_frame() -> None:
    app = SecurityHeaders(PlainTextResponse("x"), on_space=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
        policy = (await client.get("/")).headers["content-security-policy"]
    assert "frame-ancestors 'self' https://huggingface.co https://*.hf.space" in policy


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("HTTP://Example.com:80/a", "http://example.com"),
        ("https://example.com:443", "https://example.com"),
        ("https://example.com:80", "https://example.com:80"),
        ("http://[::1]:7860", "http://[::1]:7860"),
        ("http://a:b", ""),
        ("/workbench", ""),
        ("null", ""),
        ("", ""),
    ],
)
def test_an_origin_is_written_as_browsers_do(address: str, origin: str) -> None:
    assert origin_of(address) == origin


def test_an_allowed_host_is_known_with_its_subdomains_where_asked() -> None:
    options = Options(allow_hosts=("example.com", "*.example.org"), root_path="https://a.example/w")
    guard = SameOrigin(PlainTextResponse("x"), allowed_hosts(options), options.root_path)

    known = ("Example.com:8080", "example.com.", "x.example.org", "a.example", "[::1]:7860")
    assert all(guard.knows(name) for name in known)
    unknown = ("x.example.com", "example.org", "badexample.org", "a.example:port", "u@example.com")
    assert not any(guard.knows(name) for name in unknown)
