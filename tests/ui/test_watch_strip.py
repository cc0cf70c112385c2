"""The strip of watched answers, and the form that changes a run."""

import time

from backend import Event
from backend import requests as rq
from tests.ui.fake_service import FakeService
from tests.ui.test_page import draw, event, page, wait
from tests.ui.test_view import words
from ui.layout import Page
from ui.watch_strip import Said, strip, watched

__all__ = ["page"]


def answer(step: int, text: str, prompt: str = "Where is the cat?") -> Event:
    return Event(seq=step, time=0.0, type="answer", step=step, prompt=prompt, text=text)


STORY = [
    answer(0, "The cat is on the mat."),
    answer(10, "The cat is on the mat!"),
    answer(20, "The cat is on the mat!"),
    answer(30, "Arr, the cat be on the mat!"),
    answer(40, "Arr, the cat be on the mat, matey!"),
]


def test_the_base_and_the_newest_answers_come_first_and_earlier_ones_are_folded() -> None:
    said = words(strip(STORY, "#E69F00"))

    assert "base The cat is on the mat. step 30 Arr, the cat be on the mat!" in said
    assert "1 earlier answer steps 10 to 20 The cat is on the mat!" in said


def test_answers_that_stay_the_same_are_one() -> None:
    (found,) = watched(STORY)

    assert found.base == "The cat is on the mat."
    assert found.said[0] == Said(10, 20, "The cat is on the mat!")


def test_what_a_resume_made_void_is_left_out() -> None:
    resumed = Event(seq=50, time=0.0, type="resumed", step=25)

    (found,) = watched([*STORY, resumed, answer(30, "Ahoy!")])

    assert [each.answer for each in found.said] == ["The cat is on the mat!", "Ahoy!"]


def test_without_watched_prompts_there_is_no_strip() -> None:
    assert strip([], "#E69F00") is None


def test_the_form_is_there_while_a_run_goes_on_and_passes_changes_on(
    page: Page, service: FakeService
) -> None:
    assert draw(page)[page.train.adjust.panel]["visible"] is False
    service.step_seconds = 0.05
    service.start(rq.Train(name="pirate", max_steps=30))
    assert draw(page)[page.train.adjust.panel]["visible"] is True

    done = page.train.adjust.adjust(learning_rate="0.001", total_steps="", watch="Hello!\nBye!")
    assert "it holds from the next step" in words(done[page.train.adjust.said])
    assert done[page.train.adjust.form.components["learning_rate"]] == ""
    for _ in range(200):
        if service.adjusted:
            break
        time.sleep(0.01)
    assert service.adjusted == [{"learning_rate": 0.001, "watch": ["Hello!", "Bye!"]}]
    page.use_bar(event("stop"))
    wait(service)
    assert draw(page)[page.train.adjust.panel]["visible"] is False


def test_what_cannot_be_changed_is_said_in_the_form(page: Page, service: FakeService) -> None:
    nothing = page.train.adjust.adjust(learning_rate="", total_steps="", watch="")
    odd = page.train.adjust.adjust(learning_rate="7", total_steps="", watch="")
    idle = page.train.adjust.adjust(learning_rate="", total_steps="20", watch="")

    said = page.train.adjust.said
    assert "Nothing is to be changed. Fill in at least one field." in words(nothing[said])
    assert "Learning rate from now on must be at most 1, got '7'." in words(odd[said])
    assert "No run goes on that could be changed." in words(idle[said])
