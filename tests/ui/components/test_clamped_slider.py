"""Weights and strengths whose number box takes any number."""

import gradio as gr
import pytest

from tests.ui.fake_service import FakeService
from ui.app.layout import Page
from ui.components.clamped_slider import KeptSlider


@pytest.mark.parametrize(("typed", "taken"), [(99, 2), (-7.5, -2), (0.3, 0.3), (None, 0)])
def test_a_number_beyond_the_slider_counts_as_its_end(typed: float | None, taken: float) -> None:
    with gr.Blocks():
        assert KeptSlider(-2, 2, value=1, step=0.05).preprocess(typed) == taken


def test_weights_and_strengths_are_such_sliders(service: FakeService) -> None:
    with gr.Blocks():
        page = Page(service)

    sliders = [*page.combine.weights, *page.merge.sliders]
    assert all(isinstance(each, KeptSlider) for each in sliders)
    assert {each.get_block_name() for each in sliders} == {"slider"}


def test_gradio_still_raises_where_its_own_slider_is_given_more() -> None:
    """Where this fails, Gradio has mended it and `KeptSlider` can go."""
    with gr.Blocks(), pytest.raises(gr.Error, match="greater than maximum"):
        gr.Slider(-2, 2).preprocess(99)
