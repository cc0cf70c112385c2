"""The page: session bar, tabs, polling, and how each browser tab attaches to the session.

The page owns no job. Page load, tab changes and polling draw views of `service.snapshot()`: only
the visible tab, and only the parts that changed.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import gradio as gr

from backend import Service, errors
from backend import results as rs
from ui.adapters.tab import LoadTab
from ui.app.http_api import add_endpoints
from ui.app.live_views import BAR, LiveViews
from ui.app.polling import DRAW, pulse
from ui.app.session_bar import bar
from ui.chat.tab import ChatTab
from ui.combine.tab import CombineTab
from ui.components import session_facts
from ui.components.event_options import AT_ONCE, QUIET
from ui.components.feedback import mention, refuse
from ui.components.safe_view import clicked, el, safe_view
from ui.components.service_handle import ServiceHandle
from ui.hotswap.tab import HotswapTab
from ui.merge.tab import MergeTab
from ui.runs.run_detail import changes_of, other_base
from ui.runs.tab import RunsTab
from ui.train.tab import TrainTab

FOCUS_PROMPT = """() => {
  let left = 20;
  const focus = () => {
    const prompt = document.querySelector("#chat-prompt textarea");
    if (prompt && prompt.offsetParent) prompt.focus();
    else if (left--) setTimeout(focus, 100);
  };
  focus();
}"""
"""After *Try it in Chat* a question can be typed at once; the tab needs a moment to be drawn."""
TABS = ("train", "load", "combine", "merge", "hotswap", "chat", "runs")
STEERING = {
    "pause": Service.pause, "unpause": Service.resume, "save-now": Service.save_now
}  # fmt: skip
ATTACHED = "attached"
"""Key in `seen`: the form of this browser tab was restored, so it can be drawn."""
T = TypeVar("T")


class Screen(Protocol):
    """One tab. `watched` holds the inputs of `show`, `drawn` its outputs."""

    watched: dict[str, Any]
    drawn: list[Any]

    def connect(self) -> list[Any]:
        """Wire the tab's own events; return those after which the page is redrawn."""

    def show(self, snapshot: rs.Snapshot, **watched: Any) -> dict[Any, Any]:
        """Return what each component should show."""


class Page:
    """All screens and the connections between them."""

    def __init__(self, service: Service) -> None:
        self.handle = ServiceHandle(service)
        self.seen = gr.State({})
        self.pulse = pulse(LiveViews(self.handle), TABS)
        if service.settings.owner:
            gr.LoginButton("Sign in as the owner", size="sm", elem_classes="aw-auto")
        self.bar = safe_view(
            el("div", cls="aw-bar"), label="Session", elem_id=BAR, elem_classes="aw-top"
        )
        self.screens: dict[str, Screen] = {}
        self.sheets: dict[str, gr.Tab] = {}
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as self.tabs:
            self.train = self._tab("Train", TrainTab)
            self.load = self._tab("Load", LoadTab)
            self.combine = self._tab("Combine", CombineTab)
            self.merge = self._tab("Merge", MergeTab)
            self.hotswap = self._tab("Hot-swap", HotswapTab)
            self.chat = self._tab("Chat", ChatTab)
            self.runs = self._tab("Runs", RunsTab)

    def _tab(self, title: str, kind: Callable[[ServiceHandle], T]) -> T:
        """Build a tab and register its screen under the tab's id."""
        name = title.lower().replace("-", "")
        with gr.Tab(title, id=name) as self.sheets[name]:
            screen = kind(self.handle)
        self.screens[name] = cast(Screen, screen)
        return screen

    def connect(self, demo: gr.Blocks) -> None:
        """Wire polling, page load, navigation, and a redraw after each action of the user."""
        for name, screen in self.screens.items():
            drawing = self.drawing(name)
            for event in screen.connect():
                event.then(**drawing)
            self.sheets[name].select(**drawing)
            getattr(self.pulse, DRAW + name)(trigger_mode="always_last", **drawing)
        self.bar.click(self.use_bar, None, self.tabs, **QUIET).then(
            self.draw_bar, self.seen, [self.seen, self.bar], **AT_ONCE
        )
        self._connect_buttons()
        self._connect_opening(demo)

    def drawing(self, name: str) -> dict[str, Any]:
        """Return the arguments of an event that draws a tab and the session bar."""
        screen = self.screens[name]
        return {
            "fn": partial(self.draw, name),
            "inputs_kwargs": {"seen": self.seen, **screen.watched},
            "outputs": [self.seen, self.bar, *screen.drawn],
            **AT_ONCE,
        }

    def _connect_buttons(self) -> None:
        """Wire the buttons that lead to another tab; selecting a tab draws it."""
        parts = (self.train.card, self.load.adapters, self.combine.card, self.merge.card)
        for part in (*parts, self.hotswap.note, self.load.note, self.chat.trouble):
            part.click(self.navigate, None, self.tabs, **QUIET)
        for part in (self.train.stage, self.runs.actions, self.combine.result):
            tried = part.click(self.try_adapter, None, [self.tabs, self.chat.prompt], **QUIET)
            tried.then(None, js=FOCUS_PROMPT)
        picked = [self.runs.selected, self.combine.ingredients]
        self.train.stage.click(
            self.lead_on, self.combine.ingredients, [self.tabs, *picked], **QUIET
        )
        form = [self.train.method, *self.train.form.components.values()]
        self.runs.actions.click(self.start_again, None, [self.tabs, *form], **QUIET)

    def _connect_opening(self, demo: gr.Blocks) -> None:
        """Draw a new page at once, without waiting for polling: first the active run.

        Then the form is restored, and only after that checked: checking the defaults first would
        overwrite the stored form.
        """
        demo.load(self.glance, None, [self.bar, *self.train.followed], **AT_ONCE)
        demo.load(
            self.attach, self.train.keeper.state, [self.seen, *self._attached], **AT_ONCE
        ).then(**self.drawing("train")).then(
            self.chat.follow, None, [*self.chat.drawn, self.chat.prompt], **QUIET
        )

    def attach(self, kept: Any) -> dict[Any, Any]:
        """Fill a new or reloaded page: reset what it has seen, and restore its form."""
        filled = {**self.train.restore(kept), **self.load.restore()}
        properties: dict[Any, dict[str, Any]] = {}
        for more in (self.train.picker.offered, self.handle.open_to_owner()):
            for part, news in more.items():
                properties[part] = {**properties.get(part, {}), **news}
        for part, news in properties.items():
            value = {"value": filled[part]} if part in filled else {}
            filled[part] = gr.update(**value, **news)
        return {self.seen: {ATTACHED: True}, **filled}

    def glance(self) -> dict[Any, Any]:
        """Show the active run on a page that was just opened."""
        snapshot = self.handle.service.snapshot()
        return {self.bar: bar(snapshot), **self.train.follow(snapshot, [])}

    @property
    def _attached(self) -> list[Any]:
        """The components that `attach` may fill."""
        parts = [*self.train.restored, *self.load.restored, *self.handle.kept_for_owner]
        return list(dict.fromkeys(parts))

    def draw(self, name: str, seen: dict[str, Any], **watched: Any) -> dict[Any, Any]:
        """Send what changed in a tab since it was last drawn in this browser tab."""
        snapshot = self.handle.service.snapshot()
        key = _mark([snapshot.version, self.handle.version, self.chat.chat_state.version, watched])
        if ATTACHED not in seen or seen.get(name) == key:
            return {self.seen: gr.skip()}
        shown = self.screens[name].show(snapshot, **watched)
        return self._news({**seen, name: key}, {self.bar: bar(snapshot), **shown})

    def draw_bar(self, seen: dict[str, Any]) -> dict[Any, Any]:
        """Send the session bar if it changed."""
        return self._news(seen, {self.bar: bar(self.handle.service.snapshot())})

    def _news(self, seen: dict[Any, Any], wanted: dict[Any, Any]) -> dict[Any, Any]:
        """Return the parts that differ from what this browser tab shows, and the new `seen`."""
        marks = {part._id: _mark(value) for part, value in wanted.items()}
        fresh = {
            part: value for part, value in wanted.items() if seen.get(part._id) != marks[part._id]
        }
        return {self.seen: {**seen, **marks}, **fresh}

    def use_bar(self, event: gr.EventData) -> Any:
        """Handle the session bar: control or stop a job, restart, or go to a tab."""
        act, arg = clicked(event)
        if act == "stop":
            self.handle.service.stop()
        if act in STEERING:
            STEERING[act](self.handle.service)
        if act == "stop-side":
            self.handle.service.stop_side(int(arg))
        if act == "restart":
            self._restart()
        return go_to(arg) if act == "go" else gr.skip()

    def _restart(self) -> None:
        try:
            self.handle.service.restore()
        except errors.WorkbenchError as error:
            refuse("The model process could not be started", error)

    def navigate(self, event: gr.EventData) -> Any:
        """Go to the tab that a button names."""
        act, arg = clicked(event)
        return go_to(arg) if act == "go" else gr.skip()

    def try_adapter(self, event: gr.EventData) -> tuple[Any, Any]:
        """Open Chat with an adapter and a question that shows what it learned."""
        act, adapter_id = clicked(event)
        if act != "try":
            return gr.skip(), gr.skip()
        answering = session_facts.answering(self.handle.service.snapshot())
        try:
            adapter = next((a for a in answering if a.id == adapter_id), None)
            adapter = adapter or self.handle.require_adapter(adapter_id)
        except errors.WorkbenchError as error:
            refuse("Cannot try it", error)
            return gr.skip(), gr.skip()
        return go_to("chat"), self.chat.try_it(adapter) or gr.skip()

    def lead_on(self, ingredients: list[str], event: gr.EventData) -> dict[Any, Any]:
        """Open Runs to extend a finished run, or Combine to blend its adapter."""
        act, arg = clicked(event)
        if act == "longer":
            return {self.tabs: go_to("runs"), self.runs.selected: arg}
        if act == "blend":
            added = self.combine.with_adapter(ingredients, arg)
            return {self.tabs: go_to("combine"), self.combine.ingredients: added}
        return {self.tabs: gr.skip()}

    def start_again(self, event: gr.EventData) -> dict[Any, Any]:
        """Fill the Train form with a run's settings and open the tab."""
        act, run_id = clicked(event)
        if act != "again":
            return {self.tabs: gr.skip()}
        snapshot = self.handle.service.snapshot()
        run = next(run for run in snapshot.runs if run.id == run_id)
        if said := other_base(run, snapshot.base):
            mention(said, "Another base is loaded")
        if changes_of(self.handle.service.events(run_id)):
            note = f"{run.name} was changed during the run. These are its settings at the start."
            mention(note, "Original settings")
        return {self.tabs: go_to("train"), **self.train.refill(run_id)}


def go_to(tab: str) -> Any:
    """Select a tab."""
    return gr.Tabs(selected=tab) if tab in TABS else gr.skip()


def _mark(value: Any) -> int:
    return hash(json.dumps(value, default=str))


def build(service: Service) -> gr.Blocks:
    """Build the page and its HTTP endpoints on a service."""
    with gr.Blocks(
        title="Adapter Workbench", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as demo:
        add_endpoints(service)  # first: of two functions with one name, the first gets it
        page = Page(service)
        page.connect(demo)
    return demo
