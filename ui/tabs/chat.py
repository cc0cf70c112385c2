"""The Chat tab: base and adapter answer side by side, and a text is scored by both."""

import html
import math
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui import data_sets, tables, text, view
from ui.bench import Bench
from ui.feedback import explain, failure_card
from ui.forms import Form
from ui.safe_view import Node, chip, el, safe_view
from ui.session_bar import BASE_COLOUR

REDRAW_SECONDS = 0.06
SCORE_SECONDS = 300.0
NO_PROMPTS = ["Where is the cat?"]
Turn = dict[str, Any]


class ChatTab:
    """Builds the tab and answers its events."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.form = Form(rq.Chat)
        with gr.Row(elem_classes="aw-fields aw-baseline"):
            self.adapter = gr.Dropdown(
                [("none", "")],
                value="",
                label="Adapter beside the base",
                info="Adapters that were made for the loaded base.",
                elem_id="chat-adapter",
            )
        with gr.Row(elem_classes="aw-columns"):
            self.heads, self.logs = [], []
            for number, label in enumerate(("Base", "Adapter")):
                with gr.Column(min_width=280, elem_classes="aw-column"):
                    self.heads.append(safe_view(el("div"), label=f"{label} column"))
                    self.logs.append(self._log(label, number))
        self._build_prompt()
        self._build_score()

    def _log(self, label: str, number: int) -> gr.Chatbot:
        return gr.Chatbot(
            label=f"Answers of the {label.lower()}",
            show_label=False,
            height=340,
            layout="bubble",
            render_markdown=False,
            sanitize_html=True,
            buttons=[],
            placeholder="Ask something below; both answer.",
            elem_id=f"chat-log-{number}",
        )

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
                "Ask both", variant="primary", scale=1, min_width=90, elem_id="chat-send"
            )
            self.stop = gr.Button("Stop", interactive=False, scale=1, min_width=70)
            self.clear = gr.Button("Clear", scale=1, min_width=70)
        with gr.Row(elem_classes="aw-examples"):
            self.examples = [
                gr.Button(prompt, size="sm", elem_classes="aw-example")
                for prompt in self._prompts()
            ]
        self.trouble = safe_view(el("div"), label="Trouble")
        with gr.Accordion("How they answer", open=False), gr.Row(elem_classes="aw-fields"):
            for path in ("temperature", "max_new_tokens", "seed"):
                self.form.add(path, min_width=150)

    def _prompts(self) -> list[str]:
        found = [each.try_prompt for each in data_sets.bundled() if each.try_prompt]
        return list(dict.fromkeys(found))[:4] or NO_PROMPTS

    def _build_score(self) -> None:
        gr.Markdown("## Score a text", elem_classes="aw-head")
        gr.Markdown(
            "How likely is a text for each? A lower perplexity means less surprised.",
            elem_classes="aw-help",
        )
        self.text = gr.Textbox(label="Text", lines=2, max_lines=12, elem_id="score-text")
        self.score = gr.Button("Score it", size="sm", elem_id="score-go", elem_classes="aw-auto")
        self.scores = safe_view(el("div"), label="Scores", elem_id="scores")

    # -- wiring ----------------------------------------------------------------------------------

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the whole page is drawn again."""
        quiet = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        question = {
            "prompt": self.prompt,
            "adapter": self.adapter,
            "base_log": self.logs[0],
            "adapter_log": self.logs[1],
            **self.form.inputs,
        }
        asked = gr.on(
            [self.send.click, self.prompt.submit],
            self.ask,
            inputs_kwargs=question,
            outputs=[*self.logs, self.prompt, self.send, self.stop, self.trouble],
            **quiet,
        )
        stopped = self.stop.click(
            self.stop_asking, None, [self.send, self.stop], cancels=[asked], **quiet
        )
        self.clear.click(
            self.clear_logs, None, [*self.logs, self.trouble], cancels=[asked], **quiet
        )
        for example in self.examples:
            example.click(self.take_example, example, self.prompt, **quiet)
        self.score.click(self.score_text, [self.text, self.adapter], [self.scores], **quiet)
        return [stopped, asked]

    # -- answering -------------------------------------------------------------------------------

    def ask(
        self,
        prompt: str,
        adapter: str,
        base_log: list[Turn],
        adapter_log: list[Turn],
        **values: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Let the base answer, then the adapter, streamed."""
        prompt = (prompt or "").strip()
        if not prompt:
            yield self._state(
                base_log, adapter_log, trouble=el("p", "Write a question first.", cls="aw-quiet")
            )
            return
        logs = [[*base_log, _turn("user", prompt)], [*adapter_log, _turn("user", prompt)]]
        variants: list[rq.Variant] = [[], [(adapter, 1.0)]] if adapter else [[]]
        if not adapter:
            logs[1] = adapter_log
        yield self._state(*logs, prompt="", asking=True)
        try:
            for column, variant in enumerate(variants):
                for answer in self._answer(logs[column], variant, values):
                    shown = [*logs]
                    shown[column] = [*logs[column], _turn("assistant", answer)]
                    yield self._state(*shown, prompt=gr.skip(), asking=True)
                logs[column] = [*logs[column], _turn("assistant", answer)]
        except errors.WorkbenchError as error:
            # an unanswered question would make every later one fail too: it goes back to its box
            trouble = failure_card(explain(error))
            yield self._state(base_log, adapter_log, prompt=prompt, trouble=trouble)
            return
        yield self._state(*logs, prompt=gr.skip())

    def _answer(
        self, log: list[Turn], variant: rq.Variant, values: dict[str, Any]
    ) -> Iterator[str]:
        """Yield the growing answer, not more often than anybody can read."""
        messages = [rq.Message(role=turn["role"], content=_said(turn)) for turn in log]
        request = rq.Chat(messages=messages, variant=variant, **self.form.read(values))
        answer, drawn = "", 0.0
        pieces = self.bench.service.chat(request, caller="page")
        try:
            for piece in pieces:
                answer += piece
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield answer
        finally:
            pieces.close()
        yield answer or "(an empty answer)"

    def _state(
        self,
        base: list[Turn],
        adapter: list[Turn],
        *,
        prompt: Any = None,
        asking: bool = False,
        trouble: Node | None = None,
    ) -> tuple[Any, ...]:
        return (
            base,
            adapter,
            gr.skip() if prompt is None else prompt,
            gr.update(interactive=not asking),
            gr.update(interactive=asking),
            trouble or el("div"),
        )

    def stop_asking(self) -> tuple[Any, Any]:
        """Give the buttons back; ending the handler has stopped the answer."""
        return gr.update(interactive=True), gr.update(interactive=False)

    def clear_logs(self) -> tuple[Any, ...]:
        """Start both conversations afresh."""
        return [], [], el("div")

    def prompt_for(self, name: str) -> str:
        """Return a question that shows what an adapter learned, if its data is a bundled set."""
        adapters = self.bench.service.library.all()
        data = next((info.data for info in adapters if info.name == name), "")
        known = data_sets.bundled_set(data)
        return known.try_prompt if known else ""

    def take_example(self, example: str) -> str:
        """Put an example into the question."""
        return example

    # -- scoring ---------------------------------------------------------------------------------

    def score_text(self, passage: str, adapter: str) -> Node:
        """Show how likely a text is for the base and for the adapter."""
        variants: list[rq.Variant] = [[], *([[(adapter, 1.0)]] if adapter else [])]
        try:
            if not (passage or "").strip():
                raise errors.InvalidRequest("There is no text to score.", cure="Write some first.")
            job = self.bench.start(rq.Score(texts=[passage], variants=variants))
            scores = job.result(timeout=SCORE_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return failure_card(explain(error))
        colours = {a.name: a.colour for a in self.bench.service.library.all()}
        names = [("base", BASE_COLOUR), *([(adapter, colours.get(adapter, ""))] if adapter else [])]
        return score_table(scores, names)

    # -- drawing ---------------------------------------------------------------------------------

    def show(self, snapshot: rs.Snapshot, adapter: str) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session."""
        fitting = view.fitting(snapshot)
        names = [info.name for info in fitting]
        chosen = adapter if adapter in names else self._default(snapshot, names)
        colour = next((info.colour for info in fitting if info.name == chosen), BASE_COLOUR)
        base = snapshot.base.name if snapshot.base else "no base model is loaded"
        second = (
            chip(chosen, colour, "on top of the base")
            if chosen
            else el("span", "No adapter is chosen: only the base answers.", cls="aw-quiet")
        )
        return {
            self.adapter: gr.update(choices=[("none", ""), *((n, n) for n in names)], value=chosen),
            self.heads[0]: el("div", chip(base, BASE_COLOUR, "the base"), cls="aw-column-head"),
            self.heads[1]: el("div", second, cls="aw-column-head"),
        }

    def _default(self, snapshot: rs.Snapshot, names: list[str]) -> str:
        active = next((name for name, _ in snapshot.active if name in names), "")
        return active or (names[-1] if names else "")


def score_table(scores: rs.Scores, names: list[tuple[str, str]]) -> Node:
    """Describe the score of one text per variant."""
    tokens = scores.tokens[0]
    rows = [
        el(
            "tr",
            tables.cell("Who", chip(name, colour), cls="aw-name"),
            tables.cell("Log-probability", f"{total[0]:.2f} nats"),
            tables.cell("Perplexity", f"{perplexity(total[0], tokens):.2f}"),
        )
        for (name, colour), total in zip(names, scores.scores, strict=True)
    ]
    note = f"Over {text.plural(tokens, 'token')}; the first one is given, not scored."
    return el(
        "div",
        tables.table("Scores", ("Who", "Log-probability", "Perplexity"), rows),
        el("p", note, cls="aw-quiet"),
    )


def perplexity(total: float, tokens: int) -> float:
    """Return how many words the model hesitates between, on average; `tokens` counts the first."""
    return math.exp(min(-total / max(tokens - 1, 1), 700.0))


def _turn(role: str, content: str) -> Turn:
    """Make one turn as gr.Chatbot draws it: it parses HTML even without Markdown, so escape it."""
    return {"role": role, "content": html.escape(content, quote=False)}


def _said(turn: Turn) -> str:
    """Return what was said, as it was said."""
    content = turn["content"]
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return html.unescape(content)
