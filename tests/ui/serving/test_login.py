"""Behind a password: nothing without it, guesses slow down, and programs can sign in."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AuthenticationError
from starlette.requests import Request

from tests.ui.serving.conftest import NAME, SECRET
from ui.serving.login import MOST_SESSIONS, Sessions

RIGHT = {"username": NAME, "password": SECRET}
PAGE = {"accept": "text/html"}
MOST_GUESSES = 12  # so many take two minutes


@pytest.fixture
def visitor(closed_page: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=closed_page, timeout=30) as client:
        yield client


def guess(visitor: httpx.Client, secret: str = "wrong", **more: object) -> httpx.Response:
    return visitor.post("login", data={"username": NAME, "password": secret}, **more)


def test_without_signing_in_nothing_is_served(visitor: httpx.Client) -> None:
    reads = (
        "config", "gradio_api/info", "gradio_api/openapi.json", "theme.css", "manifest.json",
        "gradio_api/heartbeat/x", "gradio_api/queue/data?session_hash=x", "gradio_api/file=/etc/x",
        "assets/index.js", "robots.txt", "monitoring", "gradio_api/token", "no/such/page",
    )  # fmt: skip
    writes = ("upload", "queue/join", "call/snapshot", "component_server", "cancel", "reset")

    codes = {path: visitor.get(path).status_code for path in reads}
    codes |= {path: visitor.post(f"gradio_api/{path}").status_code for path in writes}

    assert set(codes.values()) == {401}, codes


def test_the_page_asks_and_says_nothing_else(visitor: httpx.Client) -> None:
    page = visitor.get("")
    assert page.status_code == 200
    assert 'name="password"' in page.text
    assert "gradio" not in page.text.lower()


def test_a_form_leads_to_the_page_and_signing_out_back(visitor: httpx.Client) -> None:
    signed_in = visitor.post("login", data=RIGHT, headers=PAGE)
    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/")
    cookie = signed_in.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "gradio_config" in visitor.get("").text
    assert visitor.get("config").json()["username"] == NAME
    kept = dict(visitor.cookies)

    assert visitor.get("logout").status_code == 303
    assert 'name="password"' in visitor.get("").text
    assert httpx.get(f"{visitor.base_url}config", cookies=kept).status_code == 401


def test_a_wrong_password_is_a_sentence(visitor: httpx.Client) -> None:
    said = guess(visitor)
    assert (said.status_code, said.json()["detail"]) == (401, "The name or the password is wrong.")
    page = guess(visitor, headers=PAGE)
    assert '<p role="alert">The name or the password is wrong.</p>' in page.text


def test_guesses_slow_down_and_even_the_right_one_waits(visitor: httpx.Client) -> None:
    codes, wait = [], 0
    while wait < 8:  # longer than a slow machine takes for the next request
        answer = guess(visitor, str(len(codes)))
        codes.append(answer.status_code)
        wait = int(answer.headers.get("retry-after", 0))
    assert codes[:5] == [401] * 5
    assert codes.count(401) <= MOST_GUESSES

    waits = visitor.post("login", data=RIGHT)
    assert waits.status_code == 429
    assert int(waits.headers["retry-after"]) >= 1
    assert re.search(r"Too many wrong passwords. Try again in \d+ s\.", waits.json()["detail"])
    page = visitor.post("login", data=RIGHT, headers=PAGE)
    assert page.status_code == 429
    assert "Too many wrong passwords" in page.text


def test_many_guesses_at_once_gain_nothing(visitor: httpx.Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda n: guess(visitor, str(n)).status_code, range(48)))
    assert codes.count(401) <= MOST_GUESSES


def test_other_spellings_of_the_address_count_too(visitor: httpx.Client) -> None:
    paths = ("login", "login/", "/login", "login//") * 10
    data = {"username": NAME, "password": "wrong"}
    codes = [visitor.post(path, data=data).status_code for path in paths]
    assert codes.count(401) <= MOST_GUESSES


def test_a_header_that_names_another_client_does_not_help_from_elsewhere(
    visitor: httpx.Client,
) -> None:
    """From this machine a proxy is believed: guesses then count together."""
    codes = [
        guess(visitor, str(n), headers={"x-forwarded-for": f"10.9.{n}.1"}).status_code
        for n in range(80)
    ]
    assert 429 in codes[50:60]
    assert codes.count(401) <= 60


@pytest.mark.parametrize("kind", ["urlencoded", "multipart"])
def test_both_kinds_of_form_sign_in(visitor: httpx.Client, kind: str) -> None:
    sent = (
        {"data": RIGHT}
        if kind == "urlencoded"
        else {"files": {k: (None, v) for k, v in RIGHT.items()}}
    )
    assert visitor.post("login", **sent).json() == {"success": True}
    assert visitor.get("config").status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        {"data": {"username": NAME}},
        {"json": RIGHT},
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
        {"files": {"password": ("secret.txt", b"x")}},
        {},
    ],
)
def test_a_broken_form_is_refused(visitor: httpx.Client, sent: dict) -> None:
    answer = visitor.post("login", **sent)
    assert answer.status_code in (400, 401)
    assert "detail" in answer.json()


def test_programs_sign_in_and_use_everything(closed_page: str) -> None:
    with pytest.raises(AuthenticationError):
        Client(closed_page, verbose=False)
    with pytest.raises(AuthenticationError):
        Client(closed_page, verbose=False, auth=(NAME, "wrong"))
    client = Client(closed_page, verbose=False, auth=(NAME, SECRET))
    assert client.predict(api_name="/snapshot")["base"]["source"] == "starter"
    client.close()


def guess_as_a_program(url: str) -> None:
    with suppress(AuthenticationError):
        Client(url, verbose=False, auth=(NAME, "wrong"))


def test_a_program_that_guesses_is_slowed_down(closed_page: str) -> None:
    with pytest.raises(ValueError, match="Could not login"):
        list(map(guess_as_a_program, [closed_page] * MOST_GUESSES))


def cookie_of(sessions: Sessions, token: str) -> Request:
    return Request(
        {"type": "http", "headers": [(b"cookie", f"{sessions.cookie}={token}".encode())]}
    )


def test_sessions_end_and_are_bounded() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    first = sessions.begin("ann")
    assert sessions.name_of(cookie_of(sessions, first)) == "ann"
    now[0] = 8 * 24 * 3600
    assert sessions.name_of(cookie_of(sessions, first)) is None
    kept = [sessions.begin("ann") for _ in range(MOST_SESSIONS + 1)]
    assert sessions.name_of(cookie_of(sessions, kept[0])) is None
    assert sessions.name_of(cookie_of(sessions, kept[1])) == "ann"
    assert sessions.name_of(cookie_of(sessions, "")) is None
