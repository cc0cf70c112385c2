"""The Hot-swap tab: who can share a slot, one press, the picture, and the way out."""

import json
from typing import Any

import gradio as gr
import pytest

from backend import errors
from backend import requests as rq
from backend import results as rs
from tests.ui.app.test_page import draw, event, wait
from tests.ui.fake_service import FACTS, FakeService
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.components.feedback import explain, failure_card
from ui.hotswap import slot_view
from ui.train.readiness import Check, readiness

TIMES = rs.SwapTimes(
    hotswap_seconds=0.02, switch_seconds=0.03, reload_seconds=0.2, recompile_seconds=20.0
)
SLOT = rs.SlotStatus(
    adapters=["pirate", "polite"],
    current="pirate",
    rank=16,
    compiled=True,
    compile_seconds=41.0,
    times=TIMES,
    tokens_per_second_eager=100.0,
    tokens_per_second_compiled=140.0,
)


@pytest.fixture
def page(service: FakeService) -> Page:
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    for name in ("pirate", "polite"):
        service.add_adapter(name)
    return made


def hold(service: FakeService, slot: rs.SlotStatus | None = SLOT) -> rs.Snapshot:
    with service.engine.lock:
        service.engine.slot = slot
        service.engine.version += 1
    return service.snapshot()


def scripted(service: FakeService, operation: str, result: Any) -> list[rq.Request]:
    """Let an operation come to something; returns what it is asked for."""
    asked: list[rq.Request] = []

    def answer(request: rq.Request) -> Any:
        asked.append(request)
        return result(request) if callable(result) else result

    service.script[operation] = answer
    return asked


def buttons(node: object) -> list[dict[str, Any]]:
    if not isinstance(node, list):
        return []
    own = [node[1]] if node[0] == "button" else []
    return own + [each for child in node[2] for each in buttons(child)]


def info(service: FakeService, name: str, **changes: object) -> None:
    adapter = service.add_adapter(name)
    changed = adapter.model_copy(update=changes)
    service.library.write_sidecar(service.library.folder(adapter.id), changed)


def test_plain_adapters_of_this_base_are_offered(page: Page, service: FakeService) -> None:
    info(service, "heavy", method="DoRA")
    service.add_adapter("foreign", fingerprint="other")

    drawn = page.hotswap.show(service.snapshot())

    assert drawn[page.hotswap.names]["value"] == ["pirate", "polite"]
    assert drawn[page.hotswap.before]["visible"]
    assert not drawn[page.hotswap.inside]["visible"]


def test_others_say_why_not_and_only_what_can_be_converted_has_a_button(
    page: Page, service: FakeService
) -> None:
    info(service, "heavy", method="DoRA")
    info(service, "odd", method="IA3")
    service.add_adapter("foreign", fingerprint="other")

    drawn = page.hotswap.show(service.snapshot())[page.hotswap.misfits]

    assert "heavy cannot share a slot: DoRA rescales whole weight" in words(drawn)
    assert "odd cannot share a slot: IA3 is not plain LoRA" in words(drawn)
    assert "foreign cannot share a slot: made for starter" in words(drawn)
    assert [each["data-arg"] for each in buttons(drawn)] == ["heavy"]


def test_the_way_out_converts_under_a_free_name(page: Page, service: FakeService) -> None:
    service.add_adapter("heavy plain")
    adapter = service.add_adapter("heavy", fingerprint=FACTS.fingerprint)
    done = rs.Converted(
        adapter=adapter, rank=37, relative_error=0.049, relative_error_per_layer={"q_proj": 0.049}
    )
    asked = scripted(service, "convert-adapter", done)

    page.hotswap.converter.convert("", event("convert", "heavy"))
    snapshot = wait(service)

    assert asked == [rq.ConvertAdapter(name="heavy", new_name="heavy plain 2")]
    news = words(page.hotswap.show(snapshot)[page.hotswap.converter.news])
    assert "rank 37" in news
    assert "4.9%" in news


def test_a_rank_can_be_chosen_where_something_can_be_converted(
    page: Page, service: FakeService
) -> None:
    for tab in (page.hotswap, page.combine):
        assert not tab.show(service.snapshot())[tab.converter.rank]["visible"]
    info(service, "heavy", method="DoRA", strength="on-off")
    asked = scripted(service, "convert-adapter", errors.Unsupported("No."))

    for tab in (page.hotswap, page.combine):
        assert tab.show(service.snapshot())[tab.converter.rank]["visible"]
        tab.converter.convert("12", event("convert", "heavy"))
        wait(service)

    assert [request.rank for request in asked] == [12, 12]


def test_a_rank_that_is_none_is_told_before_anything_starts(
    page: Page, service: FakeService
) -> None:
    info(service, "heavy", method="DoRA")
    before = draw(page)

    page.hotswap.converter.convert("many", event("convert", "heavy"))
    drawn = draw(page, before[page.seen])

    assert "Rank" in words(drawn[page.hotswap.converter.news])
    assert page.combine.converter.news not in drawn


def test_what_the_slot_keeps_from_being_changed_waits_and_says_why(
    page: Page, service: FakeService
) -> None:
    free = {**page.load.show(service.snapshot(), ""), **page.combine.show(service.snapshot())}
    held = hold(service)

    assert free[page.load.load]["interactive"]
    loading = page.load.show(held, "")
    assert not loading[page.load.load]["interactive"]
    assert not loading[page.load.unload]["interactive"]
    assert "slot is using the model" in words(loading[page.load.note])
    assert '"disabled": true' in json.dumps(loading[page.load.adapters])
    check, button = page.merge.check(
        names=["pirate"], strengths={}, folder="x", precision="auto", largest=5
    )
    ready = readiness(held, Check(name="new", report=None, free_name="new"))
    blending = page.combine.show(held, BOTH, mix_name="new")
    for card in (check, ready.card, blending[page.combine.card]):
        assert "leave the slot first" in words(card)
        assert "Go to Hot-swap" in words(card)
    assert not button["interactive"]
    assert not ready.can_start
    assert not blending[page.combine.go]["interactive"]


def test_a_training_under_a_slot_is_refused_and_leaves_no_run(
    page: Page, service: FakeService
) -> None:
    hold(service)
    with pytest.raises(errors.Unsupported, match="Leave the hot-swap slot first"):
        service.start(rq.Train(name="new"))
    assert list(service.snapshot().runs) == []
    assert service.snapshot().job is None


def test_a_conversion_that_failed_is_told_where_it_was_begun_and_not_for_ever(
    page: Page, service: FakeService
) -> None:
    scripted(service, "convert-adapter", errors.Unsupported("It is too odd."))
    page.combine.converter.convert("", event("convert", "pirate"))
    wait(service)
    held = page.hotswap.show(hold(service))

    assert "too odd" not in words(held[page.hotswap.note])
    assert "too odd" not in words(held[page.hotswap.converter.news])
    assert "slot of rank 16" in words(held[page.hotswap.note])
    combine = page.combine
    assert "too odd" in words(combine.show(service.snapshot())[combine.converter.news])

    page.hotswap.converter.convert("", event("convert", "pirate"))
    wait(service)
    assert "too odd" in words(page.hotswap.show(hold(service, None))[page.hotswap.converter.news])
    scripted(service, "prepare-hotswap", errors.Unsupported("No."))
    page.hotswap.start(["pirate"], compile=False)
    drawn = page.hotswap.show(wait(service))
    assert "too odd" not in words(drawn[page.hotswap.converter.news])
    assert "No." in words(drawn[page.hotswap.note])


def test_a_failed_preparation_is_not_told_of_another_choice(
    page: Page, service: FakeService
) -> None:
    scripted(service, "prepare-hotswap", errors.Unsupported("No."))
    page.hotswap.start(["pirate"], compile=False)
    wait(service)
    assert page.hotswap.choose(BOTH) == BOTH

    assert "No." not in words(page.hotswap.show(service.snapshot())[page.hotswap.note])


BOTH = ["pirate", "polite"]


def test_the_button_names_what_it_prepares_and_its_cost(page: Page, service: FakeService) -> None:
    def button(names: list[str], compile: bool = True) -> dict[str, Any]:
        drawn = page.hotswap.show(service.snapshot(), names, BOTH, compile)
        return drawn[page.hotswap.prepare]

    assert button(BOTH)["value"] == "Prepare 2 adapters (compiles once, about 1 min 58 s)"
    assert button(BOTH)["interactive"]
    plain = button(["pirate"], compile=False)
    assert plain["value"] == "Prepare pirate (without compiling, a few seconds)"
    assert not button([])["interactive"]


def test_what_widens_the_slot_for_the_others_is_named(page: Page, service: FakeService) -> None:
    info(service, "wide", rank=118)

    def note(*names: str) -> str:
        drawn = page.hotswap.show(service.snapshot(), list(names), [*BOTH, "wide"])
        return words(drawn[page.hotswap.note])

    assert "The slot gets rank 118, the rank of wide." in note("pirate", "wide")
    assert "The slot gets" not in note("pirate", "polite")
    assert "The slot gets" not in note("wide")


def test_a_tick_that_left_the_choices_does_not_stop_the_drawing(page: Page) -> None:
    assert page.hotswap.names not in page.hotswap.watched.values()


def test_a_job_that_ends_does_not_offer_to_prepare_nothing(
    page: Page, service: FakeService
) -> None:
    drawn = draw(page, slot_names=[], slot_offered=BOTH)

    assert not drawn[page.hotswap.prepare]["interactive"]
    assert "value" not in drawn[page.hotswap.names]


def test_a_new_adapter_is_ticked_and_what_was_unticked_stays_so(
    page: Page, service: FakeService
) -> None:
    service.add_adapter("third")
    service.library.discard(service.library.get("polite").id)

    drawn = draw(page, slot_names=["polite"], slot_offered=BOTH)

    assert drawn[page.hotswap.names]["value"] == ["third"]
    assert drawn[page.hotswap.offered] == ["pirate", "third"]
    assert drawn[page.hotswap.prepare]["value"].startswith("Prepare third (")


def test_ticks_outlive_the_base_being_gone_for_a_while(page: Page, service: FakeService) -> None:
    held = service.snapshot()
    gone = held.model_copy(update={"base": None, "phase": "loading"})

    drawn = page.hotswap.show(gone, ["polite"], BOTH)

    assert drawn[page.hotswap.offered] == BOTH
    assert drawn[page.hotswap.ticked] == drawn[page.hotswap.names] == gr.skip()
    assert not drawn[page.hotswap.prepare]["interactive"]
    back = page.hotswap.show(held, ["polite"], drawn[page.hotswap.offered])
    assert back[page.hotswap.prepare]["value"].startswith("Prepare polite (")


def test_a_stop_is_no_failure() -> None:
    stopped = explain(errors.Stopped("Stopped, as asked. Nothing was changed."))
    assert failure_card(stopped)[1] == {"class": "aw-note wait", "role": "status"}
    failed = explain(errors.ModelError("It is damaged."))
    assert failure_card(failed)[1] == {"class": "aw-note bad", "role": "alert"}


def test_preparing_starts_with_the_chosen_ones(page: Page, service: FakeService) -> None:
    asked = scripted(service, "prepare-hotswap", errors.Unsupported("No.", cure="Convert it."))

    page.hotswap.start(["pirate"], compile=False)
    snapshot = wait(service)

    assert asked == [rq.PrepareHotswap(adapters=["pirate"], compile=False)]
    assert "No. Convert it." in words(page.hotswap.show(snapshot)[page.hotswap.note])


def test_inside_the_slot_the_choice_gives_way_to_the_buttons(
    page: Page, service: FakeService
) -> None:
    drawn = page.hotswap.show(hold(service))

    assert not drawn[page.hotswap.before]["visible"]
    assert drawn[page.hotswap.inside]["visible"]
    marked = {b["data-arg"]: b["aria-pressed"] for b in buttons(drawn[page.hotswap.swaps])}
    assert marked == {"pirate": "true", "polite": "false", "": "false"}
    assert "slot of rank 16" in words(drawn[page.hotswap.note])


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({}, "A hot-swap answers 1,000 times sooner than compiling again"),
        ({"recompile_seconds": None}, "A hot-swap answers 10.0 times sooner than a reload"),
        ({"recompile_seconds": None, "reload_seconds": 0.02}, "A hot-swap answers within 20 ms"),
    ],
)
def test_the_pictures_title_is_its_finding(change: dict[str, Any], title: str) -> None:
    slot = SLOT.model_copy(update={"times": TIMES.model_copy(update=change)})

    assert title in words(slot_view.times(slot))


def test_the_picture_gives_every_time_and_speed_in_words() -> None:
    said = words(slot_view.times(SLOT))

    for part in (
        "20 ms",
        "30 ms",
        "200 ms",
        "20 s",
        "140 tokens/s compiled",
        "100 tokens/s not compiled",
    ):
        assert part in said
    assert "0 recompilations" in said


def test_a_slower_compilation_is_said_and_not_praised() -> None:
    slot = SLOT.model_copy(update={"note": "Compiled answers are slower than plain ones."})

    assert "slower than plain" in words(slot_view.times(slot))


def test_leaving_asks_for_the_end(page: Page, service: FakeService) -> None:
    hold(service)
    asked = scripted(service, "end-hotswap", rs.SlotLeft(active=[], max_difference=0.0))

    page.hotswap.end()
    wait(service)

    assert asked == [rq.EndHotswap()]
    wait(service)
    left = page.hotswap.show(hold(service, None))
    note = words(left[page.hotswap.note])
    assert "answers are the same as before the hot-swap (largest difference 0)" in note
    service.add_adapter("newer")
    later = page.hotswap.show(hold(service, None))
    assert "same as before" not in words(later[page.hotswap.note])


def test_leaving_twice_is_leaving_once(page: Page, service: FakeService) -> None:
    asked = scripted(service, "end-hotswap", errors.Unsupported("No slot is prepared."))

    page.hotswap.end()
    hold(service)
    page.hotswap.end()
    wait(service)

    assert asked == [rq.EndHotswap()]
    left = page.hotswap.show(hold(service, None))
    assert "No slot" not in words(left[page.hotswap.note])


def test_a_damaged_adapter_is_named_while_the_slot_stays(page: Page, service: FakeService) -> None:
    hold(service)
    scripted(service, "end-hotswap", errors.VerificationFailed("It answers otherwise."))

    page.hotswap.end()
    wait(service)

    assert "answers otherwise" in words(page.hotswap.show(hold(service))[page.hotswap.note])


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0004, "0.4 ms"), (0.042, "42 ms"), (2.94, "2.9 s"), (80, "1 min 20 s")]
)
def test_times_have_the_unit_that_fits(seconds: float, said: str) -> None:
    assert slot_view.short_time(seconds) == said
