"""The picked adapter's panel on the Load tab: it follows the adapter and closes without it."""

from collections.abc import Callable
from pathlib import Path

import gradio as gr
import pytest

from backend import errors
from backend import requests as rq
from backend import results as rs
from tests.ui.fake_service import FakeService
from tests.ui.test_page import draw, event, offered, rename, wait
from tests.ui.test_view import words
from ui.adapter_panel import NOTHING, DetailPanel
from ui.layout import Page


@pytest.fixture
def page(service: FakeService) -> Page:
    service.add_adapter("pirate")
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


@pytest.fixture
def inspected(service: FakeService) -> list[str]:
    """Let every inspection fail, and return what was inspected."""
    asked: list[str] = []
    service.script["inspect-adapter"] = lambda request: (
        asked.append(request.source) or errors.DataError("It cannot be read.")
    )
    return asked


def test_a_pick_opens_the_panel_and_measures_once(
    page: Page, service: FakeService, inspected: list[str]
) -> None:
    detail = page.load.detail
    picked = page.load.pick(event("pick", offered(draw(page)[page.load.adapters], "pick")))

    first, last = detail.show(picked, "")
    again = list(detail.show(picked, picked))  # as after every other click in the table

    assert first[detail.shown.index(detail.new_name)] == "pirate"
    assert "It cannot be read." in words(last[detail.shown.index(detail.report)])
    assert again == [(gr.skip(),) * len(detail.shown)]
    assert inspected == ["library:pirate"]
    drawn = draw(page, chosen=picked)
    assert drawn[detail.panel]["visible"]
    assert "pirate" in words(drawn[detail.head])


def test_the_panel_follows_a_rename_and_closes_when_the_adapter_is_gone(
    page: Page, service: FakeService, inspected: list[str]
) -> None:
    detail, picked = page.load.detail, service.library.get("pirate").id

    rename(service, "pirate", "captain")
    renamed = draw(page, chosen=picked)
    service.library.discard(picked)
    gone = draw(page, chosen=picked)

    assert renamed[detail.panel]["visible"]
    assert "captain" in words(renamed[detail.head])
    assert not gone[detail.panel]["visible"]
    assert list(detail.show(picked, "")) == [(gr.skip(),) * len(detail.shown)]
    assert inspected == []


ACTIONS: list[Callable[[DetailPanel, str], object]] = [
    lambda detail, chosen: detail.next_words(chosen, "Hello"),
    lambda detail, chosen: detail.make_zip(chosen)[1],
    lambda detail, chosen: detail.save_copy(chosen, "copy"),
    lambda detail, chosen: detail.rename_adapter(chosen, "other"),
    lambda detail, chosen: detail.take_off(chosen),
    lambda detail, chosen: detail.delete_adapter(chosen),
]


@pytest.mark.parametrize("act", ACTIONS)
def test_nothing_is_done_to_another_adapter_that_got_the_name(
    page: Page, service: FakeService, act: Callable[[DetailPanel, str], object]
) -> None:
    picked = service.library.get("pirate").id
    service.library.discard(picked)
    service.add_adapter("pirate")

    said = words(act(page.load.detail, picked))

    assert "no longer in the library" in said
    assert service.library.get("pirate")


def test_what_is_done_is_done_to_the_picked_adapter_under_its_name_of_now(
    page: Page, service: FakeService
) -> None:
    picked = service.library.get("pirate").id
    rename(service, "pirate", "captain")
    service.add_adapter("pirate")
    asked: list[rq.DeleteAdapter] = []
    service.script["delete-adapter"] = lambda request: (
        asked.append(request) or rs.Removed(name=request.name, active=[], freed_bytes=0)
    )

    page.load.detail.delete_adapter(picked)
    wait(service)

    assert asked == [rq.DeleteAdapter(name="captain")]


def test_what_an_upload_writes_does_not_wipe_its_report(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "some.zip"
    file.write_bytes(b"PK")
    add = page.load.add

    source, uploaded, _ = add.take_upload(str(file))

    assert add.forget(source, uploaded) == (gr.skip(), gr.skip())
    assert add.forget("another", uploaded)[0] == NOTHING
