"""The table of quantisations, the memory card, and the way back after running out of memory."""

import json
from typing import Any

import gradio as gr
import pytest

from backend import errors
from backend import requests as rq
from backend import results as rs
from tests.ui.app.test_page import draw, event, form_of, last_check, wait
from tests.ui.fake_facts import STATS
from tests.ui.fake_service import FACTS, FakeService
from tests.ui.test_view import words
from ui.adapters.quantization_table import FIELDS
from ui.app.layout import Page
from ui.train.memory_card import change_words, memory_card

PARTS = [
    ("weights", 16_000_000),
    ("adapter", 500_000),
    ("gradients", 500_000),
    ("optimiser", 1_000_000),
    ("activations", 80_000_000),
    ("logits", 20_000_000),
    ("overhead", 40_000_000),
]


@pytest.fixture
def page(service: FakeService) -> Page:
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


def load_form(page: Page, **changes: Any) -> dict[str, Any]:
    return {name: page.load.form.components[name].value for name in FIELDS} | changes


def compare(page: Page, **changes: Any) -> str:
    return words(page.load.quantizations.compare(*load_form(page, **changes).values()))


def report(**changes: Any) -> rs.PreflightReport:
    plain = rs.PreflightReport(
        ready=True, problems=[], notes=[], matched_modules=["q_proj"], trainable_parameters=1000,
        total_parameters=FACTS.parameters, stats=None, steps=10, memory_bytes=142 * 1024**2,
        memory_available_bytes=20 * 1024**3, seconds=3.0, seconds_from="one timed step",
        memory_parts=PARTS, largest_token_budget=200_000,
    )  # fmt: skip
    return plain.model_copy(update=changes)


# -- quantisations -------------------------------------------------------------------------------


def test_the_table_names_each_quantisation_and_recommends_one(page: Page) -> None:
    said = compare(page)

    assert "Recommended: full precision. Full precision is exact and fits." in said
    for title in ("8-bit (int8)", "4-bit (nf4)", "4-bit (fp4)"):
        assert title in said
    assert "all except PiSSA and OLoRA" in said


def test_the_table_is_asked_for_once_the_session_is_free(page: Page, service: FakeService) -> None:
    key = page.load.quantizations.key

    assert draw(page)[key] == FACTS.loaded_as
    service.load_seconds = 0.3
    service.start(rq.LoadModel(source="starter"))
    assert page.load.quantizations.key_for(service.snapshot()) == gr.skip()
    wait(service)


def test_a_click_chooses_and_the_table_marks_what_the_form_holds(page: Page) -> None:
    act = page.load.quantizations.act

    table, chosen = act(event("choose", "nf4"), **load_form(page))

    assert chosen == "nf4"
    assert words(table) == compare(page, quantization="nf4")
    assert compare(page).count("Choose") == 3
    assert "1.10x all except PiSSA and OLoRA Chosen" in " ".join(
        compare(page, quantization="nf4").split()
    )


def test_speed_can_be_measured_here(page: Page) -> None:
    assert "Measure it here" in compare(page)

    table, chosen = page.load.quantizations.act(event("measure"), **load_form(page))

    assert "measured on this machine" in words(table)
    assert "Measure it here" not in words(table)
    assert chosen == gr.skip()


def test_a_base_that_is_not_there_is_said_in_place_of_the_table(
    page: Page, service: FakeService
) -> None:
    error = errors.NotFound("There is no model a/b on the Hub.")
    service.script["quantization-table"] = lambda request: error

    assert "There is no model a/b on the Hub." in compare(page, source="a/b")
    assert compare(page, source=" ") == ""


# -- the memory card -----------------------------------------------------------------------------


def test_the_card_shows_each_part_and_the_largest_budget() -> None:
    said = words(memory_card(report()))

    assert "the run needs 142 MB in addition to the loaded base; 20 GB are free" in said
    assert "Activations 76 MB" in said
    assert "Largest batch that fits: 200,000 tokens." in said
    assert "Use " not in said


def test_a_budget_beyond_the_data_is_not_called_too_large() -> None:
    stats = STATS.model_copy(update={"tokens": 9_000})

    said = words(memory_card(report(stats=stats, largest_token_budget=9_000)))

    assert "All examples fit into one batch (9,000 tokens)." in said


def test_a_run_that_does_not_fit_offers_the_smallest_change(
    page: Page, service: FakeService
) -> None:
    change = {"tokens_per_step": 1024, "gradient_checkpointing": True}
    problem = rs.Problem(what="The run does not fit.", cure="Take the smaller settings.")
    service.script["preflight"] = lambda request: report(
        ready=False, problems=[problem], memory_available_bytes=90_000_000, smallest_change=change
    )
    card = words(last_check(page)[1])

    assert "It does not fit" in card
    assert "Use gradient checkpointing and 1,024 tokens per batch" in card
    form = form_of(page)
    shown = page.train.use_change(
        event("fit", '{"tokens_per_step": 1024, "gradient_checkpointing": true}'), **form
    )
    fields = page.train.form.components
    assert shown[fields["tokens_per_step"]]["value"] == 1024
    assert shown[fields["gradient_checkpointing"]]["value"] is True
    assert shown[fields["name"]]["value"] == "pirate"


def test_a_run_that_does_not_fit_offers_a_smaller_base(page: Page, service: FakeService) -> None:
    load: dict[str, str | bool | None] = {"source": "starter", "quantization": "nf4"}
    smaller = rs.SmallerBase(
        title="this base in 4-bit (nf4)", load=load, memory_bytes=1, price="Answers change."
    )
    service.script["preflight"] = lambda request: report(
        ready=False,
        problems=[rs.Problem(what="The run does not fit.")],
        memory_available_bytes=90_000_000,
        smaller_base=smaller,
    )
    asked: list[rq.LoadModel] = []

    def refused(request: rq.LoadModel) -> errors.WorkbenchError:
        asked.append(request)
        return errors.OutOfMemory("No.")

    service.script["load-model"] = refused

    assert "Load this base in 4-bit (nf4)" in words(last_check(page)[1])
    page.train.take_offer(event("smaller", json.dumps(load)))

    wait(service)
    assert [(each.source, each.quantization) for each in asked] == [("starter", "nf4")]


def test_changes_are_said_in_words() -> None:
    assert change_words({"tokens_per_step": 512}) == "512 tokens per batch"
    assert change_words({"gradient_checkpointing": True}) == "gradient checkpointing"


# -- out of memory -------------------------------------------------------------------------------


def test_a_run_out_of_memory_names_its_cost_and_retries_with_what_fits(
    page: Page, service: FakeService
) -> None:
    said = {
        "message": "The machine ran out of memory. The largest part is activations.",
        "cure": "Retry with 256 tokens per batch. The session is unharmed.",
    }

    def exhausted(request: rq.Train) -> errors.WorkbenchError:
        retry = {"tokens_per_step": 256}
        service.runs.all()[0].update(state="failed", error="OutOfMemory", retry=retry, **said)
        return errors.OutOfMemory(said["message"], cure=said["cure"])

    service.script["train"] = exhausted
    page.train.start(**form_of(page, epochs=1))
    failed = wait(service).runs[0]
    stage = words(draw(page)[page.train.stage])
    assert said["message"] in stage
    assert "Retry with 256 tokens per batch" in stage

    del service.script["train"]
    updates = page.train.act_on_run([], event("retry", failed.id))

    assert updates[page.train.dismissed] == [failed.id]
    retried = next(run for run in wait(service).runs if run.id != failed.id)
    assert retried.state == "finished"
    request = service.runs.get(retried.id).request.train
    assert (request.tokens_per_step, request.epochs) == (256, 1)
    assert updates[page.train.form.components["tokens_per_step"]]["value"] == 256


def test_a_finished_run_says_predicted_and_measured_memory(
    page: Page, service: FakeService
) -> None:
    page.train.start(**form_of(page))
    run = wait(service).runs[0]
    service.runs.get(run.id).update(
        peak_memory_bytes=200 * 1024**2,
        predicted_memory_bytes=210 * 1024**2,
        preparation="Quantised base prepared: 28 layers frozen, norms cast to fp32.",
        layout="rows",
        layout_note="Each example is trained in a row of its own.",
    )
    stage = words(draw(page)[page.train.stage])

    assert "Peak memory: 200 MB measured, 210 MB predicted (+5%)." in stage
    assert "28 layers frozen, norms cast to fp32" in stage
    assert "Each example is trained in a row of its own." in stage
