"""The Runs tab: all runs, one in detail, several compared; below, the workspace panel."""

from typing import Any

import gradio as gr

from backend import errors
from backend import results as rs
from ui.components import session_facts
from ui.components.event_options import QUIET
from ui.components.feedback import refuse
from ui.components.safe_view import clicked, el, safe_view
from ui.components.service_handle import ServiceHandle
from ui.runs import run_table
from ui.runs.compare_panel import ComparePanel
from ui.runs.run_panel import RunPanel
from ui.workspace.panel import WorkspacePanel

MOST_TICKED = 8


class RunsTab:
    """Builds the tab and handles its events."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.selected = gr.State("")
        self.ticked = gr.State([])
        with gr.Row(elem_classes="aw-fields aw-filter"):
            self.words = gr.Textbox(
                label="Filter", info="Words in the name, data, method, base or notes.", max_lines=1
            )
            states = [("any", ""), *((word, state) for state, word in session_facts.STATES.items())]
            self.state = gr.Dropdown(states, value="", label="State", info="Filter by state.")
        self.queue = safe_view(el("div"), label="Queue", elem_id="runs-queue")
        self.table = safe_view(run_table.run_table([], ""), label="Runs", elem_id="runs-table")
        self.comparison = ComparePanel(handle)
        self.panel = RunPanel(handle)
        self.actions = self.panel.actions
        self.workspace = WorkspacePanel(handle)

    @property
    def watched(self) -> dict[str, Any]:
        """This browser tab's own inputs of `show`."""
        return {
            "words": self.words, "state": self.state, "selected": self.selected,
            "ticked": self.ticked, "deleting": self.panel.deleting,
        }  # fmt: skip

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` draws."""
        return [
            self.queue, self.table, *self.comparison.drawn, *self.panel.drawn,
            *self.workspace.drawn,
        ]  # fmt: skip

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the page is redrawn."""
        self.comparison.connect(self.ticked)
        return [
            self.words.change(self.no_change, None, None, **QUIET),
            self.state.change(self.no_change, None, None, **QUIET),
            self.queue.click(self.act_on_queue, None, None, **QUIET),
            self.table.click(self.pick, self.ticked, [self.selected, self.ticked], **QUIET),
            *self.panel.connect(self.selected),
            *self.workspace.connect(),
        ]

    def no_change(self) -> None:
        """Do nothing: the filter is applied when the page is redrawn."""

    def pick(self, ticked: list[str], event: gr.EventData) -> tuple[Any, Any]:
        """Select the run that was clicked, or tick it for comparison."""
        act, run_id = clicked(event)
        if act == "pick":
            return run_id, gr.skip()
        if act != "tick":
            return gr.skip(), gr.skip()
        if run_id in ticked:
            return gr.skip(), [each for each in ticked if each != run_id]
        return gr.skip(), [*ticked, run_id][-MOST_TICKED:]

    def act_on_queue(self, event: gr.EventData) -> None:
        """Remove a run from the queue, or let it start with its data as it is now."""
        act, id = clicked(event)
        try:
            if act == "unqueue":
                self.handle.service.unqueue(id)
            elif act == "confirm":
                self.handle.service.confirm_queued(id)
        except errors.WorkbenchError as error:
            refuse("Not removed" if act == "unqueue" else "It still waits", error)

    def show(
        self,
        snapshot: rs.Snapshot,
        words: str,
        state: str,
        selected: str,
        ticked: list[str],
        deleting: str,
    ) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session."""
        run = next((each for each in snapshot.runs if each.id == selected), None)
        runs = run_table.filtered(snapshot.runs, words or "", state or "")
        return {
            self.queue: run_table.queue_list(snapshot.queue),
            self.table: run_table.run_table(runs, selected, ticked),
            **self.comparison.show(snapshot, ticked),
            **self.panel.show(snapshot, run, deleting),
            **self.workspace.show(),
        }
