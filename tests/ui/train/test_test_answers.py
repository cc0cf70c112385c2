"""The strip of watched answers, and the form that changes a run."""

import time
from collections.abc import Callable

from backend import Event
from backend import requests as rq
from tests.ui.app.test_page import draw, event, page, wait
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.train.test_answers import Said, strip, watched

__all__ = ["page"]


def answer(step: int, text: str, prompt: str = "Where is the cat?") -> Event:
    return Event(seq=step, time=0.0, type="answer", step=step, prompt=prompt, text=text)


def until(happened: Callable[[], bool]) -> None:
    for _ in range(200):
        if happened():
            return
        time.sleep(0.01)


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


def test_what_only_the_base_answered_is_told_to_come_and_left_out_of_a_run_that_is_over() -> None:
    over = Event(seq=90, time=0.0, type="stopped", step=4)

    assert "The adapter will answer at the next test" in words(strip(STORY[:1], "#E69F00"))
    assert strip([STORY[0], over], "#E69F00") is None


def test_a_prompt_that_was_let_go_before_it_was_answered_is_left_out() -> None:
    changed = Event(
        seq=2, time=0.0, type="adjusted", step=4, text="The test questions were changed."
    )
    other = answer(0, "It is on the hook.", prompt="Where is the hat?")

    assert [each.prompt for each in watched([STORY[0], changed])] == ["Where is the cat?"]
    assert [each.prompt for each in watched([STORY[0], changed, other])] == ["Where is the hat?"]
    kept = watched([STORY[0], changed, other, STORY[1]])
    assert [each.prompt for each in kept] == ["Where is the cat?", "Where is the hat?"]


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

    until(lambda: service.snapshot().runs[0].total_steps == 30)
    filled = page.train.adjust.fill()
    now = filled[page.train.adjust.filled]
    assert now["total_steps"] == "30"
    assert filled[page.train.adjust.form.components["total_steps"]] == "30"

    wanted = {**now, "learning_rate": "0.001", "watch": "Hello!\nBye!"}
    done = page.train.adjust.adjust(filled=now, **wanted)
    assert "applies from the next step" in words(done[page.train.adjust.said])
    assert done[page.train.adjust.filled] == wanted
    until(lambda: bool(service.adjusted))
    assert service.adjusted == [{"learning_rate": 0.001, "watch": ["Hello!", "Bye!"]}]
    page.use_bar(event("stop"))
    wait(service)
    assert draw(page)[page.train.adjust.panel]["visible"] is False


def test_what_cannot_be_changed_is_said_in_the_form(page: Page, service: FakeService) -> None:
    now = {"learning_rate": "0.003", "total_steps": "10", "watch": "Hello!"}
    adjust = page.train.adjust.adjust
    nothing = adjust(filled=now, **now)
    emptied = adjust(filled=now, **{**now, "learning_rate": ""})
    odd = adjust(filled=now, **{**now, "learning_rate": "7"})
    idle = adjust(filled=now, **{**now, "watch": ""})

    said = page.train.adjust.said
    assert "Change one of the fields first." in words(nothing[said])
    assert "There is nothing to change. Fill in at least one field." in words(emptied[said])
    assert "Learning rate from now on must be at most 1, got '7'." in words(odd[said])
    assert "There is no run to change." in words(idle[said])
