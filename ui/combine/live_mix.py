"""Trying a mix without saving it: the adapters answer together at the chosen weights."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from ui.combine import blend_views
from ui.components import data_sets
from ui.components.blockers import REASON
from ui.components.event_options import QUIET
from ui.components.feedback import explain, failure_card
from ui.components.safe_view import el, safe_view
from ui.components.service_handle import ServiceHandle

LIVE_TOKENS = 60
SETTLE_SECONDS = 0.3
"""A moving slider sends many values; only the last one gets an answer."""
REDRAW_SECONDS = 0.06


class LiveMix:
    """A question, and the answer of the exact mix at the sliders' weights."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        gr.Markdown("## Try it without saving", elem_classes="aw-head")
        prompts = [each.try_prompt for each in data_sets.bundled() if each.try_prompt]
        self.prompt = gr.Textbox(
            label="Your question",
            value=next(iter(prompts), "Where is the cat?"),
            info="The exact weighted sum answers. No adapter is created.",
            max_lines=4,
            elem_id="combine-prompt",
        )
        with gr.Row(elem_classes="aw-examples"):
            self.ask = gr.Button("Ask the mix", size="sm", elem_id="combine-ask")
            self.follows = gr.Checkbox(
                label="Answer again when a slider moves", elem_id="combine-live"
            )
        self.answer = safe_view(el("div"), label="The mix's answer", elem_id="combine-answer")

    def connect(self, ingredients: gr.Dropdown, weights: Sequence[gr.Slider]) -> None:
        """Wire question and sliders to the answer."""
        asked = {"prompt": self.prompt, "names": ingredients, **weight_inputs(weights)}
        gr.on(
            [self.ask.click, self.prompt.submit],
            self.answer_once,
            inputs_kwargs=asked,
            outputs=self.answer,
            **QUIET,
        )
        gr.on(
            [*(slider.change for slider in weights), self.follows.change],
            self.follow,
            inputs_kwargs={"live": self.follows, **asked},
            outputs=self.answer,
            trigger_mode="always_last",
            **QUIET,
        )

    def follow(self, live: bool, prompt: str, names: list[str], **weights: float) -> Iterator[Any]:
        """Answer again after a slider has stopped moving."""
        if not live or not names:
            yield gr.skip()
            return
        time.sleep(SETTLE_SECONDS)
        yield from self.answer_once(prompt, names, **weights)

    def answer_once(self, prompt: str, names: list[str], **weights: float) -> Iterator[Any]:
        """Stream the answer of the exact mix; nothing is created or saved."""
        if not names or not (prompt or "").strip():
            yield el("p", "Choose ingredients and enter a question first.", cls="aw-quiet")
            return
        if self.handle.service.snapshot().slot is not None:
            yield el("p", f"{REASON}.", cls="aw-quiet")
            return
        mix, colours = mix_of(names, weights), colours_of(self.handle)
        answer, drawn = "", 0.0
        try:
            for piece in self._pieces(prompt.strip(), mix):
                answer += piece
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield blend_views.live_answer(mix, colours, answer)
        except errors.WorkbenchError as error:
            yield failure_card(explain(error))
            return
        yield blend_views.live_answer(mix, colours, answer or "(an empty answer)")

    def _pieces(self, prompt: str, mix: rq.Variant) -> Iterator[str]:
        request = rq.Chat(
            messages=[rq.Message(role="user", content=prompt)],
            variant=mix,
            max_new_tokens=LIVE_TOKENS,
        )
        pieces = self.handle.service.chat(request, caller="page")
        try:
            yield from pieces
        finally:
            pieces.close()


def weight_inputs(weights: Sequence[gr.Slider]) -> dict[str, gr.Slider]:
    """Return the sliders under the names that handlers receive."""
    return {f"weight_{number}": slider for number, slider in enumerate(weights)}


def mix_of(names: Sequence[str], values: Mapping[str, Any]) -> rq.Variant:
    """Pair ingredients with the sliders' values, in order."""
    return [(name, float(values[f"weight_{number}"])) for number, name in enumerate(names)]


def colours_of(handle: ServiceHandle) -> dict[str, str]:
    """Return each adapter's colour."""
    return {info.name: info.colour for info in handle.service.snapshot().adapters}
