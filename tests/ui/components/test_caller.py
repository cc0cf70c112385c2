"""A demo's owner, once signed in, is not held to its limits; everybody else is."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from starlette.middleware import Middleware

from app import space_owner
from backend import Settings
from tests.ui.conftest import free_port
from tests.ui.fake_service import FakeService
from ui.app.layout import Page, build
from ui.components import caller

SIGNED_IN = "x-signed-in"


class Sessions:
    """Stands in for the signed cookie, which needs packages that only a Space brings."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = dict(scope.get("headers", [])).get(SIGNED_IN.encode(), b"").decode()
        name, _, left = name.partition(":")
        profile = {
            "userinfo": {"preferred_username": name},
            "expires_at": time.time() + int(left or 60),
        }
        scope["session"] = {"oauth_info": profile} if name else {}
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeService]:
    settings = Settings(workspace=tmp_path_factory.mktemp("w"), demo=True, owner="ann")
    built = settings.model_copy(update={"owner": ""})  # a sign-in button needs those packages too
    with FakeService(built, step_seconds=0.002) as fake:
        page = build(fake)
        fake.settings = settings
        _, fake.url, _ = page.launch(
            server_port=free_port(), prevent_thread_lock=True, quiet=True,
            app_kwargs={"middleware": [Middleware(Sessions)]},
        )  # fmt: skip
        yield fake
        page.close(verbose=False)


@pytest.mark.parametrize("signed_in", ["", "eve", "Ann", "ann:-60"])
def test_a_visitor_is_held_to_the_limits(demo: FakeService, signed_in: str) -> None:
    client = Client(demo.url, verbose=False, headers={SIGNED_IN: signed_in})

    with pytest.raises(AppError, match="bundled models and data only"):
        client.predict({"source": "someone/model"}, api_name="/load_model")
    client.close()


def test_the_signed_in_owner_is_not(demo: FakeService) -> None:
    client = Client(demo.url, verbose=False, headers={SIGNED_IN: "ann"})

    loaded = client.predict({"source": "someone/model"}, api_name="/load_model")

    assert loaded["source"] == "someone/model"
    with pytest.raises(AppError, match="The page may not use /etc"):
        client.predict({"source": "/etc"}, api_name="/load_model")
    client.close()


def test_the_page_of_a_demo_opens_what_is_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(workspace=tmp_path, demo=True)
    with FakeService(settings, step_seconds=0.002) as service, gr.Blocks():
        page = Page(service)
        closed = page.attach(None)
        service.settings = settings.model_copy(update={"owner": "ann"})
        monkeypatch.setattr(caller, "_signed_in_name", lambda: "ann")
        opened = page.attach(None)

    upload, save = page.train.picker.upload, page.load.detail.save
    assert not {upload, save} & closed.keys()
    assert opened[upload]["interactive"]
    assert opened[save]["visible"]
    assert opened[page.load.form.components["source"]]["allow_custom_value"]


def test_outside_a_request_nobody_is_the_owner(tmp_path: Path) -> None:
    assert caller.caller(Settings(workspace=tmp_path, demo=True, owner="ann")) == "page"


def test_only_a_space_with_signing_in_has_an_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "ann")
    monkeypatch.setattr("app.find_spec", lambda name: object())
    assert space_owner() == ""
    monkeypatch.setattr("app.ON_SPACE", True)
    assert space_owner() == ""
    monkeypatch.setenv("OAUTH_CLIENT_ID", "id")
    assert space_owner() == "ann"
    monkeypatch.setattr("app.find_spec", lambda name: None)
    assert space_owner() == ""


def test_a_demos_time_limit_is_lifted_for_its_owner_alone(demo: FakeService) -> None:
    heard: list[dict] = []
    send = demo.engine._runtime.send
    demo.engine._runtime.send = lambda message: (heard.append(message), send(message))
    for name, signed_in in (("one", ""), ("two", "ann")):
        client = Client(demo.url, verbose=False, headers={SIGNED_IN: signed_in})
        client.predict({"name": name, "epochs": 1}, api_name="/train")
        while client.predict(api_name="/snapshot")["job"] is not None:
            time.sleep(0.02)
        client.close()
    demo.engine._runtime.send = send

    trainings = [message for message in heard if message.get("op") == "train"]
    assert [message.get("owner", False) for message in trainings] == [False, True]
