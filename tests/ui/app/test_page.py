"""The page's handlers, called as Gradio calls them, on a service without a model."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from backend import errors
from backend import requests as rq
from backend import results as rs
from tests.ui.fake_service import FakeService, evaluation
from tests.ui.test_view import words
from ui.app.layout import ATTACHED, Page
from ui.train.readiness import Check


@pytest.fixture
def page(service: FakeService) -> Page:
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


def event(act: str, arg: str = "") -> gr.EventData:
    return SimpleNamespace(_data={"act": act, "arg": arg})


def form_of(page: Page, **changes: object) -> dict[str, object]:
    values = {name: component.value for name, component in page.train.inputs.items()}
    return {**values, "name": "pirate", **changes}


def draw(page: Page, seen: dict | None = None, **changes: object) -> dict:
    """Draw the page as a browser tab whose own states are as built, but for `changes`."""
    drawn: dict = {page.seen: seen or {ATTACHED: True}}
    for name, screen in page.screens.items():
        watched = {
            key: changes.get(key, copy.deepcopy(component.value))
            for key, component in screen.watched.items()
        }
        news = page.draw(name, drawn[page.seen], **watched)
        drawn |= {part: value for part, value in news.items() if value != gr.skip()}
    return drawn


def wait(service: FakeService) -> rs.Snapshot:
    for _ in range(1000):
        snapshot = service.snapshot()
        if snapshot.job is None:
            return snapshot
        time.sleep(0.005)
    raise TimeoutError("The job does not end.")


def last_check(page: Page, **changes: object) -> tuple:
    return list(checks(page, **form_of(page, **changes)))[-1]


def checks(page: Page, suggested: str = "", rate: float = 0.003, **values: object) -> Iterator:
    held = {"learning_rate": rate, "max_length": 512, "tokens_per_step": 512}
    return page.train.check_settings(suggested=suggested, held=held, **values)


def test_a_training_that_is_refused_before_it_began_does_not_wait_for_ever(
    page: Page, service: FakeService
) -> None:
    service.script["train"] = lambda request: errors.Unsupported("Not now.", cure="Later.")
    page.train.start(**form_of(page))
    wait(service)
    run = service.snapshot().runs[0]
    assert (run.state, run.message) == ("failed", "Not now.")


def test_an_unchanged_session_is_not_sent_again(page: Page) -> None:
    first = draw(page)
    assert page.bar in first
    second = draw(page, first[page.seen])
    assert list(second) == [page.seen]


def test_a_page_is_not_drawn_before_its_form_is_as_it_was_left(page: Page) -> None:
    news = page.draw("load", {}, chosen="")
    assert news == {page.seen: gr.skip()}


def test_only_what_changed_is_sent(page: Page, service: FakeService) -> None:
    first = draw(page)
    service.add_adapter("polite")
    service.engine.say("good", "Something else.")
    second = draw(page, first[page.seen])
    assert page.load.adapters in second
    assert page.bar in second
    assert page.load.facts not in second
    assert page.train.chart not in second


def test_the_check_says_what_will_happen(page: Page) -> None:
    check, card, button, line, *_ = last_check(page)
    assert check.report.ready
    assert "28 layers matched" in words(card)
    assert button["value"].startswith("Train pirate, ")
    assert button["interactive"]
    assert "600 rows, 550 to train on, 50 held out, longest 61 tokens" in words(line)


def test_the_advanced_label_counts_changes(page: Page) -> None:
    assert "all as proposed" in last_check(page)[4]["label"]
    assert "2 changed" in last_check(page, seed=1, max_steps="9")[4]["label"]


def test_wrong_settings_keep_the_button_off(page: Page) -> None:
    _, card, button, *_ = last_check(page, adapter__rank=0)
    assert "Rank" in words(card)
    assert not button["interactive"]


def test_bad_data_is_told_in_its_own_words(page: Page, service: FakeService) -> None:
    error = errors.DataError("Line 3 is not JSON.", cure="Mend the line.")
    service.script["preflight"] = lambda request: error
    _, card, button, *_ = last_check(page)
    assert "Line 3 is not JSON. Mend the line." in words(card)
    assert not button["interactive"]


def test_a_taken_name_is_offered_another(page: Page, service: FakeService) -> None:
    service.add_adapter("pirate")
    _, card, button, *_ = last_check(page)
    assert "Call it pirate 2" in words(card)
    assert not button["interactive"]
    assert page.train.take_offer(event("rename", "pirate 2")) == {page.train.name: "pirate 2"}


def test_a_name_nobody_wrote_moves_on_by_itself(page: Page, service: FakeService) -> None:
    service.add_adapter("pirate")
    values = form_of(page)
    name, suggested, *_ = list(checks(page, "pirate", **values))[-1][5:]
    assert (name, suggested) == ("pirate 2", "pirate 2")


def test_a_rate_that_cannot_work_is_warned_of_and_mended(page: Page, service: FakeService) -> None:
    plain = page.train._checks(Check(), form_of(page))
    report = list(plain)[-1].report
    assert report is not None
    problem = rs.Problem(what="At a learning rate of 1 it forgets.", cure="Try 0.003.")
    warned = report.model_copy(update={"warnings": (problem,)})
    service.script["preflight"] = lambda request: warned
    _, card, button, *_ = last_check(page, learning_rate=1)
    assert "At a learning rate of 1 it forgets. Try 0.003." in words(card)
    assert "Ready." not in words(card)
    assert button["interactive"]
    rate = page.train.form.components["learning_rate"]
    assert page.train.take_offer(event("rate", "0.003")) == {rate: 0.003}


def test_a_finished_run_shows_curve_and_evidence(page: Page, service: FakeService) -> None:
    page.train.start(**form_of(page, epochs=1))
    run = wait(service).runs[0]
    drawn = draw(page)
    shown = {"run": run.id, "colour": run.colour, "live": False, "step": run.step}
    assert drawn[page.train.chart] == shown
    said = words(drawn[page.train.stage])
    assert "base 0 %, now 96 %" in said
    assert "Verified" in said
    page.try_adapter(event("try", offered(drawn[page.train.stage], "try")))
    assert "pirate" in words(draw(page)[page.chat.answers])


def test_try_it_follows_the_adapter_and_not_its_name(page: Page, service: FakeService) -> None:
    page.train.start(**form_of(page, epochs=1))
    run = wait(service).runs[0]
    stage = draw(page)[page.train.stage]
    rename(service, "pirate", "captain")
    impostor = service.add_adapter("pirate")
    for drawn in (stage, draw(page, selected=run.id)[page.runs.actions]):
        tab, _ = page.try_adapter(event("try", offered(drawn, "try")))
        assert tab.selected == "chat"
        assert [column.title for column in columns(page)] == ["base", "captain"]
        page.chat.chat_state.choose([])
    assert impostor.name == "pirate"


def test_nothing_is_tried_that_is_gone(page: Page, service: FakeService) -> None:
    page.train.start(**form_of(page, epochs=1))
    run = wait(service).runs[0]
    stale = offered(draw(page)[page.train.stage], "try")
    service.library.discard(service.library.get("pirate").id)
    service.add_adapter("pirate")

    drawn = draw(page, selected=run.id)

    assert "Try it" not in words(drawn[page.train.stage])
    assert "Try it" not in words(drawn[page.runs.actions])
    with pytest.warns(UserWarning, match="no longer in the library"):
        assert page.try_adapter(event("try", stale)) == (gr.skip(), gr.skip())


def columns(page: Page) -> list:
    return page.chat.chat_state.columns(page.handle.service.snapshot())


def rename(service: FakeService, name: str, new_name: str) -> rs.AdapterInfo:
    """Rename an adapter as somebody in another tab would."""
    info = service.library.get(name).model_copy(update={"name": new_name})
    return service.library.update(info)


def offered(node: object, act: str) -> str:
    """Return what the button for an act would say it is about."""
    if not isinstance(node, list):
        return ""
    if node[1].get("data-act") == act:
        return str(node[1]["data-arg"])
    return next((found for child in node[2] if (found := offered(child, act))), "")


def test_start_another_clears_the_stage(page: Page, service: FakeService) -> None:
    page.train.start(**form_of(page, epochs=1))
    run = wait(service).runs[0]
    updates = page.train.act_on_run([], event("another", run.id))
    assert updates[page.train.name] == "pirate 2"
    drawn = draw(page, dismissed=updates[page.train.dismissed])
    assert "No run to show yet." in words(drawn[page.train.stage])


def test_a_stopped_run_can_be_resumed(page: Page, service: FakeService) -> None:
    page.train.start(**form_of(page, max_steps="4000", epochs=1000))
    time.sleep(0.1)
    page.use_bar(event("stop"))
    run = wait(service).runs[0]
    assert run.state == "stopped"
    assert "Resume" in words(draw(page)[page.train.stage])
    page.train.act_on_run([], event("resume", run.id))
    assert service.snapshot().job is not None
    page.use_bar(event("stop"))
    assert wait(service).runs[0].step >= run.step


def test_the_stage_shows_the_run_that_began_last_drawn_or_not(
    page: Page, service: FakeService
) -> None:
    page.train.start(**form_of(page, epochs=1))
    wait(service)
    draw(page)
    service.start(rq.Train(name="second", max_steps=1)).result(timeout=60)
    newest = service.snapshot().runs[0]
    assert draw(page)[page.train.chart]["run"] == newest.id
    service.runs.all()[1].claim()
    assert draw(page)[page.train.chart]["run"] != newest.id


def test_divergence_offers_a_quarter_of_the_learning_rate(page: Page, service: FakeService) -> None:
    def diverge(request: rq.Train) -> errors.WorkbenchError:
        run = service.runs.all()[0]
        said = {"message": "The loss is not finite.", "cure": "Lower the rate."}
        run.update(state="failed", error="Diverged", **said)
        return errors.Diverged("The loss is not finite.", cure="Lower the rate.")

    service.script["train"] = diverge
    page.train.start(**form_of(page, learning_rate=0.004))
    run = wait(service).runs[0]
    said = words(draw(page)[page.train.stage])
    assert "The loss is not finite." in said
    assert "Try with learning rate 0.001" in said
    updates = page.train.act_on_run([], event("slower", run.id))
    assert updates[page.train.form.components["learning_rate"]]["value"] == pytest.approx(0.001)
    updates = page.train.act_on_run([], event("best", run.id))
    assert updates[page.train.form.components["keep_best"]]["value"] is True


def test_the_death_of_the_engine_is_said_and_mended(page: Page, service: FakeService) -> None:
    page.train.start(**form_of(page, max_steps="4000", epochs=1000))
    time.sleep(0.2)
    service.engine._runtime.kill()
    time.sleep(0.2)
    snapshot = wait(service)
    assert snapshot.runs[0].state == "interrupted"
    assert snapshot.base is not None
    drawn = draw(page)
    assert "was interrupted" in words(drawn[page.bar])
    assert "Resume" in words(drawn[page.train.stage])


def test_a_failed_load_is_told_on_the_load_tab(page: Page, service: FakeService) -> None:
    error = errors.ModelError("No weights in there.", cure="Choose another.", details="x.bin")
    service.script["load-model"] = lambda request: error
    values = {name: each.value for name, each in page.load.form.inputs.items()}
    page.load.load_base(**values)
    wait(service)
    note = words(draw(page)[page.load.note])
    assert "No weights in there. Choose another." in note
    assert "x.bin" in note


def test_an_adapter_is_turned_on_and_off(page: Page, service: FakeService) -> None:
    service.add_adapter("polite", evaluation=evaluation(0.3, 0.96))
    page.load.switch(event("on", "polite"))
    assert wait(service).active == [("polite", 1.0)]
    assert "Turn off" in words(draw(page)[page.load.adapters])
    page.load.switch(event("off", "polite"))
    assert wait(service).active == []


def test_a_saved_copy_shows_its_evidence(page: Page, service: FakeService) -> None:
    polite = service.add_adapter("polite").id
    said = words(page.load.detail.save_copy(polite, str(service.settings.copies_dir / "copy")))
    assert "56 tensors" in said
    assert "largest difference 0" in said
    assert "No folder is given" in words(page.load.detail.save_copy(polite, " "))
    assert "may not use" in words(page.load.detail.save_copy(polite, "/etc/copy"))


def test_a_picked_run_shows_its_settings(page: Page, service: FakeService) -> None:
    page.train.start(**form_of(page, epochs=1, seed=7))
    run = wait(service).runs[0]
    assert page.runs.pick([], event("pick", run.id)) == (run.id, gr.skip())
    drawn = draw(page, selected=run.id)
    assert drawn[page.runs.panel.chart]["run"] == run.id
    assert "output.log" in words(drawn[page.runs.panel.facts])
    assert "Seed 7" in words(drawn[page.runs.panel.facts])


def test_a_file_of_the_wrong_type_is_refused(page: Page, tmp_path) -> None:
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"x")
    picker = page.train.picker
    assert "cat.png is not a data file." in words(picker.add_upload(str(picture))[picker.refused])
    data = tmp_path / "my <b>rows.jsonl"
    data.write_text('{"text": "a"}\n')
    update = picker.add_upload(str(data))[picker.data]
    assert update["value"].endswith(".jsonl")
    assert "<" not in update["value"]


def test_a_page_opened_later_knows_what_was_uploaded_by_name(page: Page, tmp_path: Path) -> None:
    picker = page.train.picker
    data = tmp_path / "ours.jsonl"
    data.write_text('{"text": "a"}\n')
    uploaded = picker.add_upload(str(data))[picker.data]["value"]

    opened = page.attach({"data": uploaded})

    assert opened[picker.data]["value"] == uploaded
    assert ("ours.jsonl (uploaded)", uploaded) in opened[picker.data]["choices"]
    held_out = opened[page.train.form.components["held_out"]]
    assert ("ours.jsonl (uploaded)", uploaded) in held_out["choices"]
    assert "value" not in held_out


def test_examples_are_tinted_where_the_model_learns(page: Page) -> None:
    _, problems, pieces = page.train.picker.look_at_data(**form_of(page))
    assert ("Arr, on the mat!", "learned") in pieces
    assert "Row 3: the answer is <b>empty</b>" in words(problems)


def test_a_demo_takes_no_uploads(tmp_path) -> None:
    from backend import Settings

    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n')
    with FakeService(Settings(workspace=tmp_path / "w", demo=True)) as fake, gr.Blocks():
        page = Page(fake)
        refused = page.train.picker.add_upload(str(file))[page.train.picker.refused]
    assert "Uploads are disabled" in words(refused)
    assert not page.train.picker.upload.interactive


def test_the_settings_are_checked_again_when_a_run_takes_their_name(
    page: Page, service: FakeService
) -> None:
    service.step_seconds = 0.02
    before = draw(page)[page.train.check_key]
    service.start(rq.Train(name="pirate", max_steps=20))

    assert draw(page)[page.train.check_key] != before
    wait(service)
