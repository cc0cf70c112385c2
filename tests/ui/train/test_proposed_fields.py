"""The form takes over what suits the base and the data, unless the user chose something."""

import gradio as gr
import pytest

from backend import results as rs
from tests.ui.app.test_page import checks, form_of, last_check
from tests.ui.fake_service import FACTS, FakeService
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.train import proposed_fields


@pytest.fixture
def page(service: FakeService) -> Page:
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


def with_large_base(service: FakeService) -> None:
    service.engine.base = FACTS.model_copy(update={"parameters": 135_000_000})


def test_a_large_base_gets_a_smaller_learning_rate_by_itself(
    page: Page, service: FakeService
) -> None:
    with_large_base(service)
    rate, length, batch, suggested, _ = last_check(page)[7:]
    assert (rate, suggested["learning_rate"]) == (2e-4, 2e-4)
    assert (length, batch) == (gr.skip(), gr.skip())
    back = list(checks(page, rate=2e-4, **form_of(page, learning_rate=2e-4)))[-1]
    assert back[7] == gr.skip()


def test_a_learning_rate_that_somebody_chose_stays(page: Page, service: FakeService) -> None:
    with_large_base(service)
    rate, *_, kept = last_check(page, learning_rate=0.001)[7:]
    assert rate == gr.skip()
    assert kept["learning_rate"] == 0.001


def test_an_emptied_learning_rate_is_proposed_again(page: Page, service: FakeService) -> None:
    with_large_base(service)
    assert last_check(page, learning_rate=0)[7] == 2e-4
    assert page.train.request(form_of(page, learning_rate=0)).learning_rate is None


def proposing(page: Page, service: FakeService, **settings: float) -> None:
    """Let the check propose settings, with a reason for each."""
    report = last_check(page)[0].report
    suits = {"learning_rate": 0.003, "max_length": 512, "tokens_per_step": 512, **settings}
    why = ("Small base.", "Short examples.", "Few examples.")
    proposed = report.model_copy(update={"proposal": rs.Proposal(**suits, why=why)})
    service.script["preflight"] = lambda request: proposed


def test_what_suits_the_examples_is_taken_over_with_its_reasons(
    page: Page, service: FakeService
) -> None:
    proposing(page, service, tokens_per_step=128)
    _, card, *_, rate, length, batch, suggested, kept = last_check(page)

    assert (rate, length, batch) == (gr.skip(), gr.skip(), 128)
    assert suggested == {"learning_rate": 0.003, "max_length": 512, "tokens_per_step": 128}
    assert "tokens_per_step" not in kept
    assert "Small base. Short examples. Few examples." in words(card)


def test_a_length_and_a_batch_that_somebody_chose_stay(page: Page, service: FakeService) -> None:
    proposing(page, service, tokens_per_step=128, max_length=1024)
    *_, length, batch, _, kept = last_check(page, tokens_per_step=256, max_length=64)

    assert (length, batch) == (gr.skip(), gr.skip())
    assert (kept["tokens_per_step"], kept["max_length"]) == (256, 64)


def test_what_was_proposed_for_other_data_is_forgotten() -> None:
    held = {"learning_rate": 2e-4, "max_length": 1024, "tokens_per_step": 64}

    length, batch, first = proposed_fields.start_again(held, 1024, 64)

    assert (length, batch) == (512, 512)
    assert first == {"learning_rate": 2e-4, "max_length": 512, "tokens_per_step": 512}


def test_other_data_leaves_what_somebody_chose() -> None:
    held = {"learning_rate": 2e-4, "max_length": 512, "tokens_per_step": 64}

    length, batch, first = proposed_fields.start_again(held, 96, 64)

    assert (length, batch) == (gr.skip(), 512)
    assert first["max_length"] == 512


def test_a_proposal_for_data_that_is_not_ready_is_taken_over(
    page: Page, service: FakeService
) -> None:
    report = last_check(page)[0].report
    suits = rs.Proposal(
        learning_rate=0.003, max_length=512, tokens_per_step=192, why=("a.", "b.", "c.")
    )
    blocked = report.model_copy(
        update={
            "ready": False,
            "problems": [rs.Problem(what="No answer fits.", cure="Raise it.")],
            "proposal": suits,
        }
    )
    service.script["preflight"] = lambda request: blocked

    assert last_check(page, tokens_per_step=512)[9] == 192
