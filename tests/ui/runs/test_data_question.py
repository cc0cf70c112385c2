"""A run whose data has changed asks on both tabs, and the queue does."""

from pathlib import Path

import gradio as gr
import pytest

from backend import requests as rq
from backend import results as rs
from tests.ui.app.test_page import event, form_of, wait
from tests.ui.fake_service import FakeService
from tests.ui.runs.test_tab import summary
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.runs import run_detail, run_table
from ui.train.data_question import data_question

WHAT = "people.jsonl has changed since this run: 91 rows then, 120 now."


@pytest.fixture
def page(service: FakeService) -> Page:
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


def asking(extra: float = 0.0, state: str = "stopped") -> rs.RunSummary:
    change = rs.DataChange(what=WHAT, extra_epochs=extra)
    return summary("pirate", state=state, resumable=True, data_change=change)


def test_the_change_and_both_ways_on_are_offered() -> None:
    said = words(run_detail.run_actions(asking(), None))

    assert f"pirate was not resumed. {WHAT}" in said
    assert "Then the epochs that remain begin at its start. The curve breaks" in said
    assert "Go on with the new data" in said
    assert "Leave the run as it is" in said


def test_an_extension_asks_in_its_own_words() -> None:
    said = words(data_question(asking(2.0, "finished")))

    assert "pirate was not extended." in said
    assert "Then the added epochs begin at its start" in said


def test_a_run_that_goes_on_asks_nothing() -> None:
    assert data_question(summary()) is None
    assert data_question(asking(state="running")) is None


def test_what_was_decided_is_carried_out(page: Page, service: FakeService) -> None:
    page.train.start(**form_of(page, epochs=1))
    run = wait(service).runs[0]
    folder = service.runs.get(run.id)
    change = rs.DataChange(what=WHAT, extra_epochs=2.0)
    asked: list[rq.Resume] = []
    service.script["resume"] = lambda request: asked.append(request) or rs.Unloaded(freed_bytes=0)

    folder.update(data_change=change)
    page.runs.panel.act(event("leave", run.id))
    assert service.snapshot().runs[0].data_change is None
    folder.update(data_change=change)
    page.train.act_on_run([], event("go-on", run.id))
    wait(service)

    assert asked == [rq.Resume(run_id=run.id, extra_epochs=2.0, changed_data=True)]


def test_a_queued_run_asks_and_can_be_confirmed() -> None:
    queued = rs.QueuedRun(
        id="q1", name="pirate", data="starter:pirate", method="LoRA", rank=8, added=0.0,
        waits_for="a decision about its data", question=WHAT,
    )  # fmt: skip

    said = words(run_table.queue_list([queued]))

    assert "waiting for a decision about its data" in said
    assert WHAT in said
    assert "Use the new data" in said
    plain = queued.model_copy(update={"question": "", "waits_for": ""})
    assert "Use the new data" not in words(run_table.queue_list([plain]))


def test_the_settings_of_a_changed_run_say_so() -> None:
    run = summary("pirate", data_changes=(f"{WHAT} The run goes on.",))
    shown = run_detail.run_facts(run, rq.Train(name="pirate"), Path("nowhere.log"))

    assert "Changed data" in words(shown)
    assert WHAT in words(shown)
