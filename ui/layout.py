"""The page: session bar, tabs, the pulse, and how every browser tab attaches to the session.

The page never owns a job. Page load and pulse draw the same views of `service.snapshot()`; of a
drawing only the parts that changed are sent, and nothing at all while nothing changed.
"""

import json
from typing import Any

import gradio as gr

from backend import Service
from ui.bench import Bench
from ui.endpoints import add_endpoints
from ui.pulse import pulse
from ui.safe_view import clicked, el, safe_view
from ui.session_bar import bar
from ui.tabs.chat import ChatTab
from ui.tabs.hotswap import HotswapTab
from ui.tabs.load import LoadTab
from ui.tabs.merge import MergeTab
from ui.tabs.runs import RunsTab
from ui.tabs.train import TrainTab
from ui.view import Check

TABS = ("train", "load", "merge", "hotswap", "chat", "runs")
QUIET = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}


class Page:
    """All screens and what happens between them."""

    def __init__(self, service: Service) -> None:
        self.bench = Bench(service)
        self.seen = gr.State({})
        self.pulse = pulse(service)
        if service.settings.owner:
            gr.LoginButton("Sign in as the owner", size="sm", elem_classes="aw-auto")
        self.bar = safe_view(el("div", cls="aw-bar"), label="Session", elem_classes="aw-top")
        with gr.Tabs(elem_id="tabs") as self.tabs:
            with gr.Tab("Train", id="train"):
                self.train = TrainTab(self.bench)
            with gr.Tab("Load", id="load"):
                self.load = LoadTab(self.bench)
            with gr.Tab("Merge", id="merge"):
                self.merge = MergeTab(self.bench)
            with gr.Tab("Hot-swap", id="hotswap"):
                self.hotswap = HotswapTab(self.bench)
            with gr.Tab("Chat", id="chat"):
                self.chat = ChatTab(self.bench)
            with gr.Tab("Runs", id="runs"):
                self.runs = RunsTab(self.bench)

    def connect(self, demo: gr.Blocks) -> None:
        """Wire pulse, page load, navigation, and a fresh drawing after everything a person does."""
        inputs = {
            "seen": self.seen,
            "check": self.train.check,
            "dismissed": self.train.dismissed,
            **self.load.inputs,
            **self.runs.inputs,
        }
        drawing = {"inputs_kwargs": inputs, "outputs": self._outputs(), **QUIET}
        for tab in (self.train, self.load, self.merge, self.hotswap, self.chat, self.runs):
            for event in tab.connect():
                event.then(self.draw, **drawing)
        self.bar.click(self.use_bar, None, self.tabs, **QUIET).then(self.draw, **drawing)
        for part in (self.train.card, self.load.adapters, self.merge.card, self.hotswap.note):
            part.click(self.navigate, None, self.tabs, **QUIET)
        for part in (self.train.stage, self.runs.actions):
            part.click(self.try_adapter, None, [self.tabs, self.chat.prompt], **QUIET).then(
                self.draw, **drawing
            )
        demo.load(
            self.attach, self.train.keeper.state, [self.seen, *self.train.restored], **QUIET
        ).then(self.draw, **drawing).then(
            self.chat.follow, None, [*self.chat.drawn, self.chat.prompt], **QUIET
        )
        self.pulse.click(self.draw, trigger_mode="always_last", **drawing)  # none may be lost

    def attach(self, kept: Any) -> dict[Any, Any]:
        """A page was opened or reloaded: it has seen nothing yet, and its browser kept the form."""
        opened = self.train.picker.open_to_owner()
        return {self.seen: {}, **opened, **self.train.restore(kept)}

    def draw(
        self,
        seen: dict[str, Any],
        check: Check,
        dismissed: list[str],
        chosen: str,
        words: str,
        state: str,
        selected: str,
    ) -> dict[Any, Any]:
        """Send what changed since this browser tab was last drawn."""
        snapshot = self.bench.service.snapshot()
        mine = [snapshot.version, check.model_dump(), dismissed, chosen, words, state, selected]
        mine.append(self.chat.desk.version)
        key = hash(json.dumps(mine, default=str))
        if seen.get("key") == key:
            return {self.seen: gr.skip()}
        wanted = {
            self.bar: bar(snapshot),
            **self.train.show(snapshot, check, dismissed),
            **self.load.show(snapshot, chosen),
            **self.merge.show(snapshot),
            **self.hotswap.show(snapshot),
            **self.chat.show(snapshot),
            **self.runs.show(snapshot, words, state, selected),
        }
        marks = {part._id: hash(json.dumps(value, default=str)) for part, value in wanted.items()}
        fresh = {
            part: value for part, value in wanted.items() if seen.get(part._id) != marks[part._id]
        }
        return {self.seen: {"key": key, **marks}, **fresh}

    def use_bar(self, event: gr.EventData) -> Any:
        """Stop what runs, or go to the tab that changes what was clicked."""
        act, arg = clicked(event)
        if act == "stop":
            self.bench.service.stop()
        if act == "stop-side":
            self.bench.service.stop_side(int(arg))
        return go_to(arg) if act == "go" else gr.skip()

    def navigate(self, event: gr.EventData) -> Any:
        """Go to the tab that a button names."""
        act, arg = clicked(event)
        return go_to(arg) if act == "go" else gr.skip()

    def try_adapter(self, event: gr.EventData) -> tuple[Any, Any]:
        """Open Chat with an adapter and a question that shows what it learned."""
        act, name = clicked(event)
        if act != "try":
            return gr.skip(), gr.skip()
        return go_to("chat"), self.chat.try_it(name) or gr.skip()

    def _outputs(self) -> list[Any]:
        train, load, chat, runs = self.train, self.load, self.chat, self.runs
        return [
            self.seen, self.bar,
            train.card, train.go, train.check_key, train.chart, train.stage,
            train.form.components["start_from"],
            load.facts, load.unload, load.load, load.note, load.adapters, load.adapter_note,
            self.merge.key, self.merge.stage,
            *self.hotswap.drawn,
            *chat.drawn,
            runs.table, runs.actions, runs.facts, runs.chart,
        ]  # fmt: skip


def go_to(tab: str) -> Any:
    """Select a tab."""
    return gr.Tabs(selected=tab) if tab in TABS else gr.skip()


def build(service: Service) -> gr.Blocks:
    """Build the page and its HTTP endpoints on a service."""
    with gr.Blocks(
        title="Adapter Workbench", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as demo:
        page = Page(service)
        page.connect(demo)
        add_endpoints(service)
    return demo
