"""What is said about the slot: of the one that is there, by whoever is in it, in every tab."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from backend import errors
from backend import requests as rq
from backend import results as rs
from tests.ui.app.test_page import draw, event, wait
from tests.ui.fake_service import FACTS, FakeService
from tests.ui.hotswap.test_tab import SLOT, TIMES, buttons, hold, info, page, scripted
from tests.ui.test_view import words
from ui.adapters import converter
from ui.app.layout import Page
from ui.components import session_facts
from ui.hotswap import slot_view

__all__ = ["page"]


def swaps(service: FakeService) -> Callable[[rq.Hotswap], rs.Swapped]:
    """Swap as the engine does: another adapter is in the slot afterwards."""

    def swap(request: rq.Hotswap) -> rs.Swapped:
        put(service, request.adapter)
        return rs.Swapped(
            adapter=request.adapter, seconds=0.003, recompilations=0, max_difference=2e-7
        )

    return swap


def put(service: FakeService, current: str, **changes: object) -> None:
    hold(service, SLOT.model_copy(update={"current": current, **changes}))


def press(page: Page, name: str, question: str = "Where is it?") -> str:
    *_, (_, last) = page.hotswap.swap(event("swap", name), question)
    return words(last)


def shown(page: Page) -> str:
    return words(draw(page)[page.hotswap.answer])


def test_one_press_swaps_and_answers_the_standing_question(
    page: Page, service: FakeService
) -> None:
    hold(service)
    asked = scripted(service, "hotswap", swaps(service))

    said = press(page, "polite")

    assert asked == [rq.Hotswap(adapter="polite")]
    assert "polite Where is it? Arr, Where is it?" in said
    assert "Swapped in 3.0 ms, 0 recompilations; same answers as a plain load" in said
    assert "2e-07" in said
    assert said == shown(page)


def test_the_base_answers_for_the_empty_name(page: Page, service: FakeService) -> None:
    hold(service)
    scripted(service, "hotswap", swaps(service))

    assert "You said: Hello" in press(page, "", "Hello")


def test_a_swap_that_fails_says_what_to_do_and_who_answers(
    page: Page, service: FakeService
) -> None:
    hold(service)
    scripted(service, "hotswap", errors.NotFound("It is gone.", cure="Leave the slot."))

    said = press(page, "polite")

    assert "It is gone. Leave the slot." in said
    assert "pirate stays in the slot; its answers are unchanged." in said


def test_an_answer_is_shown_for_the_slot_and_the_adapter_that_gave_it(
    page: Page, service: FakeService
) -> None:
    hold(service)
    scripted(service, "hotswap", swaps(service))
    assert "Click an adapter" in shown(page)
    press(page, "polite")

    put(service, "pirate")
    assert "pirate was swapped in after the last answer." in shown(page)
    put(service, "polite")
    assert "Arr" in shown(page)
    put(service, "polite", prepared=1.0)
    assert "Click an adapter" in shown(page)
    hold(service, None)
    assert shown(page) == ""


def test_without_compiling_recompilations_are_not_spoken_of(
    page: Page, service: FakeService
) -> None:
    hold(service, SLOT.model_copy(update={"compiled": False}))
    scripted(service, "hotswap", lambda request: rs.Swapped(
        adapter="pirate", seconds=0.001, recompilations=0, max_difference=0.0
    ))  # fmt: skip

    assert "recompilation" not in press(page, "pirate")


def test_buttons_keep_their_width() -> None:
    marks = [words(each) for each in _marks(SLOT)]

    assert marks == ["in the slot"] * 3


def _marks(slot: rs.SlotStatus) -> list[object]:
    snapshot = rs.Snapshot(
        version=1, phase="ready", base=FACTS, active=[], adapters=[], runs=[], job=None,
        notice=None, slot=slot, memory_bytes=1, memory_total_bytes=2,
    )  # fmt: skip
    return [child for each in slot_view.swap_buttons(snapshot)[2] for child in each[2][2:]]


@pytest.mark.parametrize(
    ("times", "shares"),
    [([0.01, 0.02, 0.05], [0.2, 0.4, 1.0]), ([0.005, 0.05, 50.0], [0.2, 0.4, 1.0])],
)
def test_bars_are_in_proportion_or_in_tenfolds(times: list[float], shares: list[float]) -> None:
    assert slot_view.bar_shares(times) == pytest.approx(shares)


def test_the_scale_is_told_with_a_number_where_it_is_logarithmic() -> None:
    near = TIMES.model_copy(update={"recompile_seconds": None})

    assert "22 % of the width means ten times the time" in words(slot_view.times(SLOT))
    assert "logarithmic" not in words(slot_view.times(SLOT.model_copy(update={"times": near})))


def test_what_is_prepared_is_shown_and_held_while_it_is_prepared(
    page: Page, service: FakeService
) -> None:
    service.add_adapter("third")

    def look(request: rq.PrepareHotswap) -> errors.WorkbenchError:
        seen.append(page.hotswap.show(service.snapshot()))
        return errors.Unsupported("No.")

    seen: list[dict[object, object]] = []
    scripted(service, "prepare-hotswap", look)
    page.hotswap.start(["pirate", "third"], compile=False)
    snapshot = wait(service)

    (during,) = seen
    assert during[page.hotswap.names]["value"] == ["pirate", "third"]
    assert during[page.hotswap.names]["interactive"] is False
    opened = page.hotswap.show(snapshot)[page.hotswap.names]
    assert (opened["value"], opened["interactive"]) == (["pirate", "third"], True)


def test_other_strengths_are_told_before_the_slot_is_prepared(
    page: Page, service: FakeService
) -> None:
    with service.engine.lock:
        service.engine.active = [("pirate", 0.5)]
        service.engine.version += 1

    said = words(page.hotswap.show(service.snapshot())[page.hotswap.note])

    assert "answers alone and at strength 1. The active adapters (pirate 0.5) are restored" in said


def test_a_quantised_base_says_why_nothing_is_converted(page: Page, service: FakeService) -> None:
    info(service, "heavy", method="DoRA")
    base = FACTS.model_copy(update={"quantization": "nf4"})
    snapshot = service.snapshot().model_copy(update={"base": base})

    node = slot_view.misfits(snapshot)

    assert "to convert it, load the base in full precision" in words(node)
    assert buttons(node) == []


def test_a_far_conversion_is_no_success() -> None:
    near, far = (_converted(error) for error in (0.04, 0.488))

    assert near[1]["class"] == "aw-note good"
    assert far[1]["class"] == "aw-note warn"
    assert "treat it as another adapter" in words(far)
    assert "another adapter" not in words(near)


def _converted(error: float) -> list[object]:
    made = {"rank": 1, "relative_error": error, "relative_error_per_layer": {}}
    return converter.converted(
        rs.Converted.model_construct(adapter=SimpleNamespace(name="heavy plain"), **made)
    )


def test_chat_offers_who_is_prepared(page: Page, service: FakeService) -> None:
    service.add_adapter("third")

    assert [each.name for each in session_facts.answering(hold(service))] == ["pirate", "polite"]
    assert "its adapters and the base can answer" in words(draw(page)[page.chat.trouble])
