"""Where a finished run leads to: longer training, and a blend."""

import gradio as gr

from tests.ui.app.test_page import draw, event, form_of, offered, page, wait
from tests.ui.fake_service import FakeService
from ui.app.layout import Page

__all__ = ["page"]


def test_a_finished_run_leads_to_longer_training_and_to_a_blend(
    page: Page, service: FakeService
) -> None:
    page.train.start(**form_of(page, epochs=1))
    run = wait(service).runs[0]
    stage = draw(page)[page.train.stage]

    longer = page.lead_on([], event("longer", offered(stage, "longer")))
    assert (longer[page.tabs].selected, longer[page.runs.selected]) == ("runs", run.id)
    assert draw(page, selected=run.id)[page.runs.panel.extension]["visible"]

    blend = page.lead_on(["polite"], event("blend", offered(stage, "blend")))
    assert blend[page.tabs].selected == "combine"
    assert blend[page.combine.ingredients]["value"] == ["polite", "pirate"]
    again = page.lead_on(["pirate"], event("blend", offered(stage, "blend")))
    assert again[page.combine.ingredients]["value"] == ["pirate"]
    assert page.lead_on([], event("another", run.id)) == {page.tabs: gr.skip()}
