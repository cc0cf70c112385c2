"""The comparison on the Runs tab: curves in one chart, results, settings, and answers."""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.charts.overlay_chart import overlay_chart, overlay_value
from ui.components import units
from ui.components.event_options import QUIET
from ui.components.feedback import explain, failure_card
from ui.components.safe_view import Node, el, safe_view
from ui.components.service_handle import ServiceHandle
from ui.runs import run_comparison, run_detail
from ui.runs.run_comparison import Compared

ANSWER_SECONDS = 600.0
ANSWER_TOKENS = 96
MOST_PROMPTS = 10
NOTHING: Node = el("div")


class ComparePanel:
    """Compares the ticked runs."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.hint = safe_view(NOTHING, label="How to compare")
        with gr.Column(visible=False, elem_id="runs-comparison") as self.panel:
            gr.Markdown("## Compared", elem_classes="aw-head")
            self.chart = overlay_chart(elem_id="runs-overlay")
            self.tables = safe_view(NOTHING, label="Results, and settings that differ")
            gr.Markdown("## Their answers", elem_classes="aw-head")
            with gr.Row(elem_classes="aw-ask"):
                self.prompts = gr.Textbox(
                    label="Questions",
                    info=f"One per line, up to {MOST_PROMPTS}; the base answers them too.",
                    lines=2,
                    max_lines=MOST_PROMPTS,
                    scale=8,
                    min_width=200,
                    elem_id="runs-prompts",
                )
                self.ask = gr.Button("Ask their adapters", scale=1, elem_id="runs-ask")
            self.who = safe_view(NOTHING, label="Who can answer")
            self.answers = safe_view(NOTHING, label="Answers", elem_id="runs-answers")

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` draws."""
        return [self.hint, self.panel, self.chart, self.tables, self.ask, self.who]

    def connect(self, ticked: gr.State) -> None:
        """Wire the panel's own events."""
        ask = {"inputs": [ticked, self.prompts], "outputs": self.answers, **QUIET}
        self.ask.click(self.ask_all, **ask)
        ticked.change(self.suggest, [ticked, self.prompts], [self.prompts, self.answers], **QUIET)

    def suggest(self, ticked: list[str], written: str) -> tuple[Any, Node]:
        """Suggest questions for the data if the field is empty; clears old answers."""
        runs = self._runs(ticked, self.handle.service.snapshot())
        known = "\n".join(run_comparison.try_prompts(runs))
        return gr.skip() if (written or "").strip() else known, NOTHING

    def ask_all(self, ticked: list[str], prompts: str) -> Iterator[Node]:
        """Ask the base and the adapters that fit it the same questions."""
        snapshot = self.handle.service.snapshot()
        asked = [line.strip() for line in (prompts or "").splitlines() if line.strip()]
        if not asked:
            yield el("p", "Enter a question first.", cls="aw-quiet")
            return
        able = run_comparison.answerers(self._runs(ticked, snapshot), snapshot).adapters
        yield el("p", f"{units.plural(len(able) + 1, 'model')} are answering.", cls="aw-quiet")
        try:
            request = rq.Compare(
                prompts=asked[:MOST_PROMPTS],
                variants=[[], *([(info.name, 1.0)] for info in able)],
                max_new_tokens=ANSWER_TOKENS,
            )
            found = self.handle.start(request).result(timeout=ANSWER_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            yield failure_card(explain(error))
            return
        yield run_comparison.answers(request.prompts, able, found.answers)

    def show(self, snapshot: rs.Snapshot, ticked: Sequence[str]) -> dict[Any, Any]:
        """Draw everything that follows the session and the ticks."""
        runs = self._runs(ticked, snapshot)
        chart, tables = self._pictures(runs)
        able = run_comparison.answerers(runs, snapshot)
        busy = snapshot.job is not None
        return {
            self.hint: _hint(len(runs), len(snapshot.runs)),
            self.panel: gr.update(visible=len(runs) > 1),
            self.chart: chart,
            self.tables: tables,
            self.ask: gr.update(interactive=bool(able.adapters) and not busy),
            self.who: _who(able, busy),
        }

    def _runs(self, ticked: Sequence[str], snapshot: rs.Snapshot) -> list[rs.RunSummary]:
        known = {run.id: run for run in snapshot.runs}
        return run_comparison.told_apart([known[run_id] for run_id in ticked if run_id in known])

    def _pictures(self, runs: Sequence[rs.RunSummary]) -> tuple[dict[str, Any], Node]:
        """Return curves and tables; empty if too few runs are ticked or one was just deleted."""
        if len(runs) < 2:
            return overlay_value([]), NOTHING
        service = self.handle.service
        try:
            curves = [(run, service.curve(run.id)) for run in runs]
            asked = [
                Compared(
                    run,
                    service.runs.get(run.id).request.train,
                    run_detail.changes_of(service.events(run.id)),
                )
                for run in runs
            ]
        except (errors.WorkbenchError, OSError):
            return overlay_value([]), NOTHING
        return overlay_value(curves), run_comparison.comparison(asked)


def _hint(ticked: int, there: int) -> Node:
    if ticked > 1 or there < 2:
        return NOTHING
    sentence = "Tick another run to compare the two." if ticked else "Tick runs to compare them."
    return el("p", sentence, cls="aw-quiet")


def _who(able: run_comparison.Answerers, busy: bool) -> Node:
    said = list(able.left_out)
    if not able.adapters:
        said.append("So none of the adapters can answer.")
    elif busy:
        said.append("Available when the model is idle.")
    return el("p", " ".join(said), cls="aw-quiet") if said else NOTHING
