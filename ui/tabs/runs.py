"""The Runs tab: every run with its state, and one run's curve, settings and ways on."""

from typing import Any

import gradio as gr

from backend import errors
from backend import results as rs
from ui import tables, view
from ui.bench import Bench
from ui.loss_chart import chart_value, loss_chart
from ui.safe_view import Node, clicked, el, safe_view
from ui.tabs.train import resume_run

NOTHING: Node = el("p", "Pick a run above to see its curve and settings.", cls="aw-quiet aw-empty")


class RunsTab:
    """Builds the tab and answers its events."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.selected = gr.State("")
        with gr.Row(elem_classes="aw-fields aw-filter"):
            self.words = gr.Textbox(
                label="Filter", info="Words in name, data, method or base.", max_lines=1
            )
            states = [("any", ""), *((word, state) for state, word in view.STATES.items())]
            self.state = gr.Dropdown(
                states, value="", label="State", info="Only runs in this state."
            )
        self.table = safe_view(tables.run_table([], ""), label="Runs", elem_id="runs-table")
        with gr.Row(elem_classes="aw-split aw-one-run"):
            with gr.Column(scale=5, min_width=300, elem_classes="aw-column"):
                self.actions = safe_view(NOTHING, label="The run", elem_id="run-actions")
                self.facts = safe_view(el("div"), label="Facts about the run")
            with gr.Column(scale=6, min_width=300, elem_classes="aw-column"):
                self.chart = loss_chart(
                    bench.service, elem_id="runs-chart", empty="The run's curve appears here."
                )

    @property
    def watched(self) -> dict[str, Any]:
        """What decides which runs are shown."""
        return {"words": self.words, "state": self.state, "selected": self.selected}

    @property
    def drawn(self) -> list[Any]:
        """What `show` draws."""
        return [self.table, self.actions, self.facts, self.chart]

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the whole page is drawn again."""
        quiet = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        return [
            self.words.change(self.no_change, None, None, **quiet),
            self.state.change(self.no_change, None, None, **quiet),
            self.table.click(self.pick, None, self.selected, **quiet),
            self.actions.click(self.act, None, None, **quiet),
        ]

    def no_change(self) -> None:
        """The filter is read when the page is drawn."""

    def pick(self, event: gr.EventData) -> Any:
        """Choose the run that was clicked."""
        act, run_id = clicked(event)
        return run_id if act == "pick" else gr.skip()

    def act(self, event: gr.EventData) -> None:
        """Do what the run's buttons offer."""
        act, run_id = clicked(event)
        if act == "resume":
            resume_run(self.bench, run_id)

    def show(self, snapshot: rs.Snapshot, words: str, state: str, selected: str) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session."""
        runs = tables.filtered(snapshot.runs, words or "", state or "")
        run = next((each for each in snapshot.runs if each.id == selected), None)
        return {self.table: tables.run_table(runs, selected), **self._one(snapshot, run)}

    def _one(self, snapshot: rs.Snapshot, run: rs.RunSummary | None) -> dict[Any, Any]:
        if run is None:
            return {self.actions: NOTHING, self.facts: el("div"), self.chart: chart_value(None)}
        try:
            folder = self.bench.service.runs.get(run.id)
            facts = tables.run_facts(run, folder.request.train, str(folder.log))
        except errors.WorkbenchError:
            facts = el("div")
        adapter = next((a for a in snapshot.adapters if a.run_id == run.id), None)
        live = run.state in ("queued", "running")
        return {
            self.actions: tables.run_actions(run, adapter),
            self.facts: facts,
            self.chart: chart_value(run.id, run.colour, live),
        }
