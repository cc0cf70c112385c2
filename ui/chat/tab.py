"""The Chat tab: up to six variants answer side by side, and all of them can score a text."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.chat import conversation
from ui.chat.chat_state import ADAPTER, BASE, MOST, ChatState
from ui.components import data_sets, session_facts
from ui.components.blockers import slot_note, taken
from ui.components.event_options import QUIET
from ui.components.feedback import explain, failure_card
from ui.components.forms import Form
from ui.components.safe_view import Node, el, safe_view
from ui.components.service_handle import ServiceHandle

REDRAW_SECONDS = 0.08
SCORE_SECONDS = 300.0
NO_PROMPTS = ["Where is the cat?"]


class ChatTab:
    """Builds the tab and handles its events. The conversations are in `chat_state`."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.chat_state = ChatState(handle)
        self.form = Form(rq.SideBySide)
        self._build_who()
        self.answers = safe_view(conversation.answers([]), label="Answers", elem_id="chat-answers")
        self._build_prompt()
        self._build_score()

    def _build_who(self) -> None:
        self.who = gr.Dropdown(
            [("base", BASE)],
            value=[BASE],
            multiselect=True,
            max_choices=MOST,
            label="Who answers",
            info=f"Choose up to {MOST}. Strength 1 = as trained, 0 = off, negative = the opposite.",
            elem_id="chat-who",
        )
        with gr.Row(elem_classes="aw-strengths"):
            self.strengths = [
                gr.Slider(
                    -2,
                    2,
                    value=1.0,
                    step=0.05,
                    visible=False,
                    min_width=200,
                    elem_id=f"chat-strength-{number}",
                )
                for number in range(MOST)
            ]

    def _build_prompt(self) -> None:
        with gr.Row(elem_classes="aw-ask"):
            self.prompt = gr.Textbox(
                label="Your question",
                placeholder="Where is the cat?",
                lines=1,
                max_lines=6,
                scale=8,
                min_width=200,
                elem_id="chat-prompt",
            )
            self.send = gr.Button(
                "Ask", variant="primary", scale=1, min_width=90, elem_id="chat-send"
            )
            self.stop = gr.Button(
                "Stop", interactive=False, scale=1, min_width=70, elem_id="chat-stop"
            )
            self.clear = gr.Button("Clear", scale=1, min_width=70, elem_id="chat-clear")
        with gr.Row(elem_classes="aw-examples"):
            self.examples = [
                gr.Button(prompt, size="sm", elem_classes="aw-example")
                for prompt in self._prompts()
            ]
        self.trouble = safe_view(el("div"), label="Messages")
        with gr.Accordion("How they answer", open=False), gr.Row(elem_classes="aw-fields"):
            for path in ("temperature", "max_new_tokens", "seed", "same_seed"):
                self.form.add(path, min_width=150, elem_id=f"chat-{path}")

    def _prompts(self) -> list[str]:
        found = [each.try_prompt for each in data_sets.bundled() if each.try_prompt]
        return list(dict.fromkeys(found))[:4] or NO_PROMPTS

    def _build_score(self) -> None:
        gr.Markdown("## Score a text", elem_classes="aw-head")
        gr.Markdown(
            "How likely does each model find this text? Lower perplexity = less surprised.",
            elem_classes="aw-help",
        )
        self.text = gr.Textbox(label="Text", lines=2, max_lines=12, elem_id="score-text")
        self.score = gr.Button("Score it", size="sm", elem_id="score-go", elem_classes="aw-auto")
        self.scores = safe_view(el("div"), label="Scores", elem_id="scores")

    # -- wiring ----------------------------------------------------------------------------------

    @property
    def drawn(self) -> list[Any]:
        """The components that follow the session and `chat_state`."""
        return [
            self.who, *self.strengths, self.answers, self.send, self.stop, self.trouble, self.score
        ]  # fmt: skip

    @property
    def watched(self) -> dict[str, Any]:
        """This browser tab's own inputs of `show`."""
        return {}

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the page is redrawn."""
        following = {"outputs": [*self.drawn, self.prompt], **QUIET}
        asked = gr.on(
            [self.send.click, self.prompt.submit],
            self.ask,
            inputs_kwargs={"prompt": self.prompt, **self.form.inputs},
            **following,
        )
        stopped = self.stop.click(self.stop_answers, None, None, **QUIET)
        cleared = self.clear.click(self.clear_answers, None, None, **QUIET)
        chosen = self.who.input(self.choose_who, self.who, None, **QUIET)
        moved = [
            slider.release(partial(self.set_strength, number), slider, None, **QUIET)
            for number, slider in enumerate(self.strengths)
        ]
        for example in self.examples:
            example.click(self.take_example, example, self.prompt, **QUIET)
        self.score.click(self.score_text, self.text, self.scores, **QUIET)
        return [asked, stopped, cleared, chosen, *moved]

    # -- answering -------------------------------------------------------------------------------

    def ask(self, prompt: str, **values: Any) -> Iterator[dict[Any, Any]]:
        """Ask all chosen models, and draw their answers as they arrive."""
        prompt = (prompt or "").strip()
        if not prompt:
            yield {self.trouble: el("p", "Enter a question first.", cls="aw-quiet")}
            return
        try:
            self.chat_state.ask(prompt, self.form.read(values))
        except errors.WorkbenchError as error:
            self.chat_state.refuse(error)
            yield self.show(self.handle.service.snapshot())
            return
        yield {self.prompt: "", **self.show(self.handle.service.snapshot())}
        yield from self.follow()

    def follow(self) -> Iterator[dict[Any, Any]]:
        """Draw the current answers, at most once per `REDRAW_SECONDS`.

        A page that is reloaded in the middle of an answer also continues here.
        """
        seen = -1
        while self.chat_state.asking:
            if self.chat_state.version != seen:
                seen = self.chat_state.version
                yield {self.answers: self._columns(self.handle.service.snapshot())}
            time.sleep(REDRAW_SECONDS)
        back = {self.prompt: self.chat_state.returned} if self.chat_state.returned else {}
        yield {**self.show(self.handle.service.snapshot()), **back}

    def stop_answers(self) -> None:
        """Stop the current answers; the text so far stays."""
        self.chat_state.stop()

    def clear_answers(self) -> None:
        """Clear all conversations."""
        self.chat_state.clear()

    def choose_who(self, keys: list[str]) -> None:
        """Choose what answers from now on."""
        self.chat_state.choose(keys or [])

    def set_strength(self, number: int, strength: float) -> None:
        """Set the strength of the adapter of one slider."""
        scaled = self._scaled(self.handle.service.snapshot())
        if number < len(scaled):
            self.chat_state.set_strength(scaled[number].id, float(strength))

    def try_it(self, adapter: rs.AdapterInfo) -> str:
        """Choose the base and an adapter; returns a question that shows what it learned."""
        self.chat_state.choose([BASE, ADAPTER + adapter.id])
        known = data_sets.bundled_set(adapter.data)
        return known.try_prompt if known else ""

    def take_example(self, example: str) -> str:
        """Put an example into the question field."""
        return example

    # -- scoring ---------------------------------------------------------------------------------

    def score_text(self, passage: str) -> Node:
        """Show how likely a text is for each chosen model."""
        columns = self.chat_state.columns(self.handle.service.snapshot())
        try:
            if not (passage or "").strip():
                raise errors.InvalidRequest(
                    "There is no text to score.", cure="Enter a text first."
                )
            if not columns:
                raise errors.InvalidRequest(
                    "No model is chosen.", cure="Choose one under Who answers."
                )
            variants = [column.variant for column in columns]
            request = rq.Score(texts=[passage], variants=variants, per_token=True)
            scores = self.handle.start(request).result(timeout=SCORE_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return failure_card(explain(error))
        return conversation.score_view(scores, columns)

    # -- drawing ---------------------------------------------------------------------------------

    def show(self, snapshot: rs.Snapshot) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session and `chat_state`."""
        chosen, asking = self.chat_state.chosen(snapshot), self.chat_state.asking
        busy = not session_facts.can_answer(snapshot)
        failure = self.chat_state.trouble(free=not busy)
        trouble = failure_card(failure) if failure else None if asking else taken(snapshot)
        trouble = trouble or slot_note(snapshot)
        return {
            self.who: gr.update(
                choices=self.chat_state.choices(snapshot), value=chosen, interactive=not asking
            ),
            **self._sliders(snapshot, asking),
            self.answers: self._columns(snapshot),
            self.send: gr.update(value=_button(len(chosen)), interactive=not (asking or busy)),
            self.stop: gr.update(interactive=asking),
            self.trouble: trouble or el("div"),
            self.score: gr.update(interactive=not (asking or busy)),
        }

    def _columns(self, snapshot: rs.Snapshot) -> Node:
        hint = "" if snapshot.base else "No base model is loaded yet."
        return conversation.answers(self.chat_state.columns(snapshot), hint)

    def _sliders(self, snapshot: rs.Snapshot, asking: bool) -> dict[Any, Any]:
        scaled = self._scaled(snapshot)
        return {
            slider: gr.update(
                visible=True,
                label=f"Strength of {scaled[number].name}",
                value=self.chat_state.strength(scaled[number].id),
                interactive=not asking,
            )
            if number < len(scaled)
            else gr.update(visible=False)
            for number, slider in enumerate(self.strengths)
        }

    def _scaled(self, snapshot: rs.Snapshot) -> list[rs.AdapterInfo]:
        """Return the chosen adapters whose strength can be changed."""
        scales = {
            ADAPTER + i.id: i for i in session_facts.answering(snapshot) if i.strength == "any"
        }
        return [scales[key] for key in self.chat_state.chosen(snapshot) if key in scales]


def _button(count: int) -> str:
    return {1: "Ask", 2: "Ask both"}.get(count, f"Ask all {count}")
