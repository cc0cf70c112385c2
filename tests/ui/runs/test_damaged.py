"""What the page shows of runs and adapters of which a file cannot be read."""

from collections.abc import Iterator

import gradio as gr
import pytest

from backend import requests as rq
from backend import results as rs
from tests.ui.app.test_page import draw, event
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.adapters.adapter_table import adapter_table
from ui.app.layout import Page


@pytest.fixture
def page(service: FakeService) -> Iterator[Page]:
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


def train(service: FakeService, name: str) -> rs.RunSummary:
    service.start(rq.Train(name=name, max_steps=12)).result(timeout=60)
    return next(run for run in service.snapshot().runs if run.name == name)


def test_a_damaged_run_is_listed_with_what_can_still_be_done(
    page: Page, service: FakeService
) -> None:
    run = train(service, "pirate")
    files = service.runs.get(run.id)
    files.update(state="stopped")
    lines = files.events_file.read_bytes().splitlines(keepends=True)
    files.events_file.write_bytes(b"".join(line for line in lines if b'"finished"' not in line))
    (files.folder / "status.json").write_bytes(b"")

    drawn = draw(page, selected=run.id)

    assert "Damaged" in words(drawn[page.runs.table])
    said = words(drawn[page.runs.actions])
    assert "pirate damaged" in said
    assert "status.json is damaged: it is empty." in said
    for act in ("Resume", "Try it in Chat", "Train again with these settings", "Delete"):
        assert act in said
    assert "script" not in said
    facts = words(drawn[page.runs.panel.facts])
    assert str(service.runs.get(run.id).folder) in facts
    assert "checkpoint-" in facts
    assert page.handle.on_stage(service.snapshot()) is None


def test_a_run_without_a_readable_request_is_listed_and_deleted(
    page: Page, service: FakeService
) -> None:
    run = train(service, "pirate")
    (service.runs.get(run.id).folder / "request.json").write_bytes(b"{")

    drawn = draw(page, selected=run.id)

    said = words(drawn[page.runs.actions])
    assert "It cannot be resumed. You can look into its folder or delete it." in said
    assert "Resume Try" not in said
    assert "Start again" not in said
    assert "Tick" not in words(drawn[page.runs.table])
    assert page.runs.panel.act(event("delete-now", run.id)) == ""
    assert service.snapshot().runs == []


def test_lines_of_the_curve_that_cannot_be_read_are_told(page: Page, service: FakeService) -> None:
    run = train(service, "pirate")
    with service.runs.get(run.id).events_file.open("ab") as file:
        file.write(b"{half a line\n")

    facts = words(draw(page, selected=run.id)[page.runs.panel.facts])

    assert "Curve 1 line of events.jsonl cannot be read and will be ignored." in facts


def test_an_adapter_that_cannot_be_read_is_listed_on_load(page: Page, service: FakeService) -> None:
    train(service, "pirate")
    info = service.library.get("pirate")
    (service.library.folder(info.id) / "workbench.json").write_bytes(b"")

    said = words(adapter_table(service.snapshot()))

    assert "An adapter cannot be read. workbench.json is damaged: it is empty." in said
    assert info.id in said
    page.load.switch(event("delete-damaged", info.id))
    assert service.snapshot().damaged == ()
