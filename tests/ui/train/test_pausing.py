"""Pausing a run from the page: what the bar offers, what the stage says, and whom Chat can ask."""

import time
from collections.abc import Callable

import pytest

from backend import requests as rq
from backend import results as rs
from tests.ui.app.test_page import draw, event, page, wait
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.app import session_bar
from ui.app.layout import Page
from ui.app.session_bar import bar
from ui.components import session_facts

__all__ = ["page"]


def until(service: FakeService, reached: Callable[[rs.Snapshot], bool]) -> rs.Snapshot:
    for _ in range(1000):
        snapshot = service.snapshot()
        if reached(snapshot):
            return snapshot
        time.sleep(0.005)
    raise TimeoutError("It never comes to that.")


@pytest.fixture
def paused(page: Page, service: FakeService) -> rs.Snapshot:
    service.step_seconds = 0.01
    service.start(rq.Train(name="pirate", max_steps=40))
    page.use_bar(event("pause"))
    return until(service, lambda snapshot: snapshot.phase == "paused")


def test_the_bar_offers_pause_and_save_while_a_run_goes_on(
    page: Page, service: FakeService
) -> None:
    service.step_seconds = 0.05
    service.start(rq.Train(name="pirate", max_steps=20))
    said = words(bar(service.snapshot()))
    assert "Pause" in said
    assert "Save now" in said
    page.use_bar(event("pause"))
    said = words(bar(service.snapshot()))
    assert "Resume" in said

    page.use_bar(event("unpause"))
    page.use_bar(event("stop"))
    said = words(bar(service.snapshot()))
    assert "Pause" not in said
    assert "Stop now" in said
    wait(service)


def test_a_run_with_processes_of_its_own_is_saved_but_not_paused() -> None:
    job = rs.JobInfo(
        id=3, title="Training shared", operation="train", run_id="run-1", text="step 4 of 60",
        fraction=0.1, seconds_left=None, stopping=False,
    )  # fmt: skip

    said = words(session_bar._job(job, "stop-side:3"))

    assert "Save now Stop" in said
    assert "Pause" not in said


def test_only_a_run_can_be_paused(service: FakeService) -> None:
    service.word_seconds = 0.05
    pieces = service.chat(rq.Chat(messages=[rq.Message(role="user", content="One two three")]))

    said = words(bar(service.snapshot()))
    pieces.close()

    assert "Stop" in said
    assert "Pause" not in said
    assert "Save now" not in said


def test_a_paused_run_says_so_everywhere(
    page: Page, service: FakeService, paused: rs.Snapshot
) -> None:
    drawn = draw(page)

    step = service.snapshot().runs[0].step
    assert f"Paused after step {step}." in words(drawn[page.train.stage])
    assert "Paused" in words(drawn[page.bar])
    assert "Paused" in words(drawn[page.runs.table])
    page.use_bar(event("unpause"))
    wait(service)
    assert service.runs.all()[0].status().state == "finished"


def test_the_half_trained_adapter_can_be_asked_in_chat(
    page: Page, service: FakeService, paused: rs.Snapshot
) -> None:
    half = service.snapshot().job.half_trained
    _, prompt = page.try_adapter(event("try", half.id))
    assert prompt == "Where is the cat?"
    shown = page.chat.show(service.snapshot())
    names = [title for title, _ in shown[page.chat.who]["choices"]]
    assert names[0] == "base"
    assert names[1].startswith("pirate (half-trained, step ")
    assert shown[page.chat.send]["interactive"]

    page.chat.chat_state.ask(prompt, {"max_new_tokens": 8})
    until(service, lambda _: not page.chat.chat_state.asking)
    said = words(page.chat._columns(service.snapshot()))
    assert "Arr, Where is the cat?" in said
    assert service.snapshot().phase == "paused"


def test_save_now_puts_a_mark_on_the_curve(page: Page, service: FakeService) -> None:
    service.step_seconds = 0.01
    job = service.start(rq.Train(name="pirate", max_steps=9))
    assert job.run_id is not None
    page.use_bar(event("save-now"))
    wait(service)

    marks = service.curve(job.run_id).marks
    assert [kind for _, kind in marks] == ["saved", "saved"]
    assert marks[0][0] < 9


def test_nobody_is_asked_while_a_run_goes_on(service: FakeService) -> None:
    service.step_seconds = 0.05
    service.start(rq.Train(name="pirate", max_steps=20))

    assert not session_facts.can_answer(service.snapshot())
    service.stop()
    wait(service)
    assert session_facts.can_answer(service.snapshot())
