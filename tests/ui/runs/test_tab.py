"""The Runs tab: comparing, notes, commands, scripts, exports, deleting, starting again."""

import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from backend import Event, errors
from backend import requests as rq
from backend import results as rs
from backend.runs.adjustments import OTHER_PROMPTS, Adjustment
from backend.runs.adjustments import add as add_change
from backend.runs.events import Curve
from tests.ui.app.test_page import checks, draw, event, form_of, wait
from tests.ui.fake_facts import FACTS
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.charts import overlay_chart
from ui.runs import run_comparison, run_detail, run_table
from ui.runs.run_comparison import Compared


@pytest.fixture
def page(service: FakeService) -> Iterator[Page]:
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


def train(service: FakeService, name: str, **fields: object) -> rs.RunSummary:
    service.start(rq.Train(name=name, **{"max_steps": 12, **fields})).result(timeout=60)
    return next(run for run in service.snapshot().runs if run.name == name)


def summary(name: str = "pirate", **fields: object) -> rs.RunSummary:
    known = {
        "id": f"run-{name}", "state": "finished", "colour": "#009E73", "data": "starter:pirate",
        "base_name": "starter", "method": "LoRA", "rank": 8, "created": 0.0, "begun": 0.0,
        "loss": 0.4, "eval_loss": 0.5, "exact_match": 0.9, "tokens_per_second": 900.0,
        "step": 10, "total_steps": 10, "seconds": 40.0,
    }  # fmt: skip
    return rs.RunSummary(name=name, adapter_id="ad_1", **{**known, **fields})


def test_a_run_of_experts_is_told_from_a_plain_one() -> None:
    rows = [run_table._run_row(summary(experts=each), selected=False, ticked=False)
            for each in (False, True)]  # fmt: skip

    assert "LoRA, rank 8" in words(rows[0])
    assert "LoRA with experts, rank 8" in words(rows[1])


def test_ticked_runs_are_compared_in_the_order_of_ticking(page: Page, service: FakeService) -> None:
    first = train(service, "pirate", seed=7)
    second = train(service, "polite", data="starter:polite")
    assert page.runs.pick([], event("tick", second.id)) == (gr.skip(), [second.id])
    assert page.runs.pick([second.id], event("tick", second.id)) == (gr.skip(), [])
    one = draw(page, ticked=[second.id])
    assert not one[page.runs.comparison.panel]["visible"]
    assert "Tick another run" in words(one[page.runs.comparison.hint])
    both = draw(page, ticked=[second.id, first.id])
    assert both[page.runs.comparison.panel]["visible"]
    chart = both[page.runs.comparison.chart]
    assert [run["name"] for run in chart["runs"]] == ["polite", "pirate"]
    assert all(len(run["s"]) == 12 for run in chart["runs"])
    said = words(both[page.runs.comparison.tables])
    assert "Seed 42 7" in said
    assert "Rank" not in said


def test_a_comparison_states_its_finding() -> None:
    better, worse = summary("better", eval_loss=0.31), summary("worse", eval_loss=0.46)
    other = summary("other", data="starter:polite")
    assert (
        overlay_chart.finding([worse, better])
        == "better ends with the lowest held-out loss: 0.31, next is worse with 0.46"
    )
    assert "different data" in overlay_chart.finding([better, other])
    untested = summary("untested", eval_loss=None, loss=0.2)
    assert "lowest training loss: 0.20" in overlay_chart.finding([better, untested])
    assert "same held-out loss, 0.31" in overlay_chart.finding([better, better])
    nothing = summary("nothing", eval_loss=None, loss=None)
    assert "Not all" in overlay_chart.finding([better, nothing])


def test_an_overlay_has_a_text_twin_and_tells_runs_of_one_colour_apart() -> None:
    curve = Curve(step=[1, 2], loss=[4.0, 0.5], learning_rate=[0, 0], eval_step=[2], eval_loss=[1])
    pairs = [
        (summary("a"), curve),
        (summary("b"), Curve()),
        (summary("c", colour="#0072B2"), curve),
    ]
    value = overlay_chart.overlay_value(pairs)
    assert [run["dash"] for run in value["runs"]] == ["solid", "dash", "solid"]
    assert value["said"].startswith(
        "a: training loss from 4.0 to 0.50 in 2 steps, held-out loss 1.0. b has no points yet."
    )


def test_runs_of_one_name_are_told_apart_by_their_time() -> None:
    first, second = summary("a", created=0.0), summary("a", created=86_400.0)
    names = [run.name for run in run_comparison.told_apart([first, second, summary("b")])]
    assert len(set(names)) == 3
    assert names[0].startswith("a (")
    assert names[2] == "b"


def test_only_settings_that_differ_are_listed() -> None:
    first = Compared(summary("a"), rq.Train(name="a", adapter=rq.Lora(rank=4)))
    second = Compared(summary("b", base_name="other"), rq.Train(name="b", max_steps=9))
    assert run_comparison.differences([first, second]) == [
        ("Base", ["starter", "other"]),
        ("Rank", ["4", "8"]),
        ("Maximum steps (steps)", ["not set", "9"]),
    ]
    assert "have the same settings" in words(run_comparison.settings([first, first]))


def test_settings_are_said_as_a_person_would() -> None:
    own = "/home/me/.cache/uploads/3f2a/my rows.jsonl"
    first = Compared(summary("a"), rq.Train(name="a", data=own, epochs=12))
    second = Compared(summary("b"), rq.Train(name="b", held_out=own, drop_bad_rows=True))
    found = dict(run_comparison.differences([first, second]))
    assert found["Data"] == ["my rows.jsonl", "Pirate talk"]
    assert ["12", "6"] in found.values()
    assert ["not set", "my rows.jsonl"] in found.values()
    assert ["no", "yes"] in found.values()


def test_the_held_out_loss_of_a_kept_state_is_labelled() -> None:
    runs = [summary("a", eval_loss=0.5, kept_step=60), summary("b", eval_loss=0.7)]
    said = words(run_comparison.results(runs))
    assert "0.50, the best, at step 60" in said


def changed(step: int, text: str) -> Event:
    return Event(seq=step, time=0.0, type="adjusted", step=step, text=text)


def test_of_several_changes_at_a_step_the_last_is_told() -> None:
    prompts = changed(8, OTHER_PROMPTS)
    events = [changed(4, "first"), changed(8, "never held"), prompts, changed(8, "held")]
    resumed = Event(seq=9, time=0.0, type="resumed", step=6)

    assert run_detail.changes_of(events) == ["first", OTHER_PROMPTS, "held"]
    assert run_detail.changes_of([*events, resumed]) == ["first"]


def test_what_was_changed_on_the_way_is_a_difference() -> None:
    steered = Compared(summary("a", precision="bf16"), rq.Train(name="a"), ["It ends at step 9."])
    plain = Compared(summary("b", precision="fp32"), rq.Train(name="b"))

    assert run_comparison.differences([steered, plain]) == [
        ("Computed in", ["bf16", "fp32"]),
        ("Changed during the run", ["It ends at step 9.", "nothing"]),
    ]


def test_the_best_of_a_column_is_bold_only_where_data_agree() -> None:
    runs = [summary("a", loss=0.1), summary("b", loss=0.2)]
    assert run_comparison._best_of(runs)["Training loss"] == {"run-a"}
    assert run_comparison._best_of(runs)["Exact match"] == set()
    runs[1] = summary("b", loss=0.2, data="starter:polite", tokens_per_second=1000.0)
    best = run_comparison._best_of(runs)
    assert (best["Training loss"], best["Speed"]) == (set(), {"run-b"})


def test_the_adapters_of_ticked_runs_answer_the_same_questions(
    page: Page, service: FakeService
) -> None:
    first, second = train(service, "pirate"), train(service, "polite")
    panel = page.runs.comparison
    *_, said = panel.ask_all([first.id, second.id], "Where is it?\n\nWho?\n")
    assert words(said).count("WHERE IS IT?") == 3
    assert words(said).count("WHO?") == 3
    assert "base" in words(said)
    *_, said = panel.ask_all([first.id, second.id], "  ")
    assert "Enter a question first." in words(said)


def test_who_cannot_answer_is_said(page: Page, service: FakeService) -> None:
    first, second = train(service, "pirate"), train(service, "polite")
    gone = train(service, "gone")
    service.library.discard(service.library.get("gone").id)
    elsewhere = service.library.get("polite").model_copy(update={"base_fingerprint": "other"})
    service.library.update(elsewhere)
    drawn = draw(page, ticked=[first.id, second.id, gone.id])
    said = words(drawn[page.runs.comparison.who])
    assert said == "polite was made for starter, which is not loaded. gone has no adapter."
    assert drawn[page.runs.comparison.ask]["interactive"]


def test_questions_are_suggested_until_somebody_writes(page: Page, service: FakeService) -> None:
    run = train(service, "pirate", data="starter:pirate")
    suggested, _ = page.runs.comparison.suggest([run.id], "")
    assert suggested
    assert page.runs.comparison.suggest([run.id], "Mine?")[0] == gr.skip()


def test_a_note_is_kept_found_and_shown_again(page: Page, service: FakeService) -> None:
    run = train(service, "pirate")
    assert "Saved" in words(page.runs.panel.keep_note(run.id, " the <b>good</b> one \n"))
    assert (service.runs.get(run.id).folder / "note.txt").read_text() == "the <b>good</b> one"
    assert draw(page, selected=run.id)[page.runs.panel.note] == "the <b>good</b> one"
    assert run_table.filtered(service.snapshot().runs, "GOOD", "")[0].id == run.id
    assert "at most 10,000" in words(page.runs.panel.keep_note(run.id, "x" * 10_001))
    assert "There is no run" in words(page.runs.panel.keep_note("nothing", "x"))


def test_predictions_stand_beside_what_was_measured(tmp_path: Path) -> None:
    run = summary(
        predicted_seconds=38.0, peak_memory_bytes=200 * 1024**2,
        predicted_memory_bytes=220 * 1024**2,
    )  # fmt: skip
    (tmp_path / "output.log").write_text("a warning of a library")
    said = words(run_detail.run_facts(run, rq.Train(name="x"), tmp_path / "output.log"))
    assert "40 s measured; 38 s predicted after ten steps (-5%)" in said
    assert "200 MB measured; 220 MB predicted (+10%)" in said
    small = run.model_copy(update={"peak_memory_bytes": 60 * 1024**2})
    said = words(run_detail.run_facts(small, rq.Train(name="x"), tmp_path / "output.log"))
    assert "60 MB measured; 220 MB predicted Base" in said
    assert "a warning of a library" in said
    best = run.model_copy(update={"kept_step": 3, "loss": 3.0, "eval_loss": 1.5})
    said = words(run_detail.run_facts(best, rq.Train(name="x"), tmp_path / "output.log"))
    assert "1.5 held out at step 3, the best, which is the adapter; 3.0 training at" in said
    stopped = summary(predicted_seconds=38.0, total_steps=20)
    assert "predicted" not in words(
        run_detail.run_facts(stopped, rq.Train(name="x"), tmp_path / "none.log")
    )


def test_a_run_is_shown_as_commands_and_the_error_where_it_has_no_script(
    page: Page, service: FakeService
) -> None:
    run = train(service, "pirate", seed=7)
    title, code = page.runs.panel.show_lines(event("command", run.id))
    assert "--seed 7" in code["value"]
    assert "load-model --source starter" in code["value"]
    assert "--name 'pirate 2'" in code["value"]
    (service.library.folder(run.adapter_id) / "adapter_config.json").unlink()
    title, code = page.runs.panel.show_lines(event("script", run.id))
    assert "the list of its trained layers is not on disk" in words(title)
    assert not code["visible"]
    assert page.runs.panel.show_lines(event("try", "pirate")) == (gr.skip(), gr.skip())


def test_a_run_is_exported_only_where_the_page_may_write(page: Page, service: FakeService) -> None:
    run = train(service, "pirate")
    done = rs.ExportedRun(path="out", files=["a", "b"], bytes=2048, notes=["No script: x."])
    service.script["export-run"] = lambda request: done
    folder = page.runs.panel.forget(run.id)[-1]
    assert Path(folder).is_relative_to(service.settings.workspace)
    said = words(page.runs.panel.export_run(run.id, folder))
    assert "Written to out: 2 files" in said
    assert "No script: x." in said
    assert "The page may not use /etc/out" in words(page.runs.panel.export_run(run.id, "/etc/out"))
    assert "Enter a folder first." in words(page.runs.panel.export_run(run.id, " "))


def test_a_run_is_deleted_only_when_somebody_says_so_twice(
    page: Page, service: FakeService
) -> None:
    run = train(service, "pirate")
    assert page.runs.panel.act(event("delete", run.id)) == run.id
    said = words(draw(page, selected=run.id, deleting=run.id)[page.runs.actions])
    assert "deleted permanently. Its adapter stays in the library." in said
    assert page.runs.panel.act(event("keep", run.id)) == ""
    assert service.runs.get(run.id)
    assert page.runs.panel.act(event("delete-now", run.id)) == ""
    assert service.snapshot().runs == []
    assert service.library.get("pirate")
    drawn = draw(page, selected=run.id, ticked=[run.id])
    assert "Click a run" in words(drawn[page.runs.actions])


def test_a_run_that_goes_on_is_not_deleted(service: FakeService) -> None:
    job = service.start(rq.Train(name="long", max_steps=5000, epochs=1000))
    with pytest.raises(errors.Busy, match=r"long is being trained\. Stop it first\."):
        service.delete_run(job.run_id)
    service.stop()
    wait(service)


def test_starting_again_fills_the_form_and_goes_there(page: Page, service: FakeService) -> None:
    run = train(service, "pirate", seed=7, adapter=rq.Lora(rank=4, use_dora=True))
    filled = page.start_again(event("again", run.id))
    parts = page.train.form.components
    assert filled[page.tabs].selected == "train"
    assert filled[page.train.method] == "dora"
    assert filled[parts["seed"]]["value"] == 7
    assert filled[parts["adapter.rank"]]["value"] == 4
    assert filled[page.train.name]["value"] == "pirate 2"
    assert page.start_again(event("resume", run.id)) == {page.tabs: gr.skip()}


def test_starting_again_on_another_base_says_so() -> None:
    run = summary("first", base_name="starter", quantization="nf4")
    loaded = FACTS.model_copy(update={"name": "starter", "quantization": "none"})
    said = run_detail.other_base(run, loaded)
    assert said.startswith("first was trained on starter, quantised (nf4), but starter is loaded.")
    same = loaded.model_copy(update={"quantization": "nf4"})
    assert run_detail.other_base(run, same) == ""
    assert run_detail.other_base(run, None) == ""


def test_how_the_base_was_kept_is_a_setting_that_differs() -> None:
    full = Compared(summary("full"), rq.Train(name="full"))
    small = Compared(summary("small", quantization="nf4"), rq.Train(name="small"))
    ((label, values),) = run_comparison.differences([full, small])
    assert label == "Base"
    assert values[1] == f"{values[0]}, quantised (nf4)"


def test_a_finished_run_is_extended_from_the_page(page: Page, service: FakeService) -> None:
    run = train(service, "pirate")
    drawn = draw(page, selected=run.id)
    assert drawn[page.runs.panel.extension]["visible"]
    assert drawn[page.runs.panel.extend]["interactive"]
    page.runs.panel.extend_run(run.id, 2)
    wait(service)
    assert service.engine.current is None
    assert page.handle.last("resume").request.extra_epochs == 2


def test_a_run_that_cannot_be_extended_says_why_beside_the_field(
    page: Page, service: FakeService
) -> None:
    run = train(service, "pirate")
    add_change(service.runs.get(run.id).folder, Adjustment(step=1, learning_rate=0.1))
    service.runs.get(run.id).update(message="changed")
    drawn = draw(page, selected=run.id)
    assert not drawn[page.runs.panel.extend]["interactive"]
    info = drawn[page.runs.panel.epochs]["info"]
    assert info.startswith("Not possible: its learning rate or steps were changed")
    _, lines = page.runs.panel._commands(run.id)
    comments = [line for line in lines["value"].splitlines() if line.startswith("#")]
    assert any("includes the later changes" in line for line in comments)
    assert max(map(len, comments)) <= 82


def test_a_run_that_is_not_finished_offers_no_extension(page: Page, service: FakeService) -> None:
    run = train(service, "pirate")
    service.runs.get(run.id).update(state="stopped")
    assert not draw(page, selected=run.id)[page.runs.panel.extension]["visible"]


def test_a_second_training_waits_its_turn_and_can_be_removed(
    page: Page, service: FakeService
) -> None:
    service.start(rq.Train(name="long", max_steps=5000, epochs=1000))
    *_, checked = checks(page, **form_of(page, name="second"))
    assert checked[2]["value"] == "Add second to the queue"
    assert checked[2]["interactive"]
    assert "second will start when it is done." in words(checked[1])
    page.train.start(**form_of(page, name="second"))
    page.train.start(**form_of(page, name="third"))
    drawn = draw(page)
    said = words(drawn[page.runs.queue])
    assert "2 runs in the queue" in said
    assert said.index("second") < said.index("third")
    second = service.snapshot().queue[0]
    page.runs.act_on_queue(event("unqueue", second.id))
    assert [each.name for each in service.snapshot().queue] == ["third"]
    *_, checked = checks(page, **form_of(page, name="third"))
    assert not checked[2]["interactive"]
    assert "third is number 1 in the queue." in words(checked[1])
    page.runs.act_on_queue(event("unqueue", service.snapshot().queue[0].id))
    assert "in the queue" not in words(draw(page)[page.runs.queue])
    service.stop()
    wait(service)


def test_what_waits_starts_by_itself(page: Page, service: FakeService) -> None:
    job = service.start(rq.Train(name="first", max_steps=500, epochs=1000))
    page.train.start(**form_of(page, name="second", epochs=1))
    service.stop()
    job.wait(20)
    for _ in range(500):
        if any(run.name == "second" and run.state == "finished" for run in service.snapshot().runs):
            break
        time.sleep(0.02)
    assert {adapter.name for adapter in service.snapshot().adapters} == {"first", "second"}
