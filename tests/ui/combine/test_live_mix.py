"""A mix that answers as the sliders of the Combine tab stand, without becoming an adapter."""

from types import SimpleNamespace

import gradio as gr
import pytest

from backend import errors
from tests.ui.combine.test_tab import page, weights
from tests.ui.fake_service import FakeService
from tests.ui.hotswap.test_tab import hold
from tests.ui.test_view import words
from ui.app.layout import Page

__all__ = ["page"]


def test_the_mix_answers_without_an_adapter_being_made(page: Page, service: FakeService) -> None:
    before = service.library.all()

    *_, last = page.combine.live.answer_once("Hello?", ["pirate", "polite"], **weights(0.7, -0.3))

    assert "Arr, Hello?" in words(last)
    assert "-0.3" in words(last)
    assert service.library.all() == before


def test_sliders_are_followed_only_where_that_was_asked_for(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ui.combine.live_mix.time", SimpleNamespace(sleep=print, monotonic=lambda: 0.0)
    )

    off = list(page.combine.live.follow(False, "Hello?", ["pirate"], **weights()))
    on = list(page.combine.live.follow(True, "Hello?", ["pirate"], **weights()))

    assert off == [gr.skip()]
    assert "Arr, Hello?" in words(on[-1])


def test_trouble_while_answering_is_said(page: Page, service: FakeService) -> None:
    service.script["chat"] = lambda _: errors.Unsupported("It works at strength 1 only.")

    *_, last = page.combine.live.answer_once("Hello?", ["pirate"], **weights())

    assert "It works at strength 1 only." in words(last)


def test_while_a_slot_is_prepared_nothing_is_mixed(page: Page, service: FakeService) -> None:
    hold(service)

    (said,) = page.combine.live.answer_once("Hello?", ["pirate", "polite"], **weights())

    assert "The hot-swap slot is using the model: leave the slot first." in words(said)
