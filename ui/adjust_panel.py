"""Changing a run while it goes on: learning rate, steps in all, watched prompts."""

from typing import Any

import gradio as gr

from backend import Event, errors
from backend import requests as rq
from backend import results as rs
from ui.bench import Bench
from ui.feedback import evidence, explain, failure_card
from ui.forms import Form
from ui.safe_view import Node, el, safe_view
from ui.wiring import QUIET

NOTHING: Node = el("div")


class AdjustPanel:
    """A small form beside a run that goes on; out of sight where none does."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.form = Form(rq.Adjust)
        with gr.Column(visible=False, elem_id="adjust") as self.panel:
            with gr.Accordion("Change this run while it goes on", open=False):
                with gr.Row(elem_classes="aw-fields"):
                    for path in ("learning_rate", "total_steps"):
                        self.form.add(path, min_width=150, elem_id=f"adjust-{path}")
                self.form.add("watch", elem_id="adjust-watch")
                self.go = gr.Button(
                    "Change it from the next step",
                    size="sm",
                    elem_id="adjust-go",
                    elem_classes="aw-auto",
                )
            self.said = safe_view(NOTHING, label="Changes of the run")

    def connect(self) -> list[Any]:
        """Wire the form; returns the events after which the page is drawn again."""
        asked = self.go.click(
            self.adjust,
            inputs_kwargs=self.form.inputs,
            outputs=[self.said, *self.form.components.values()],
            **QUIET,
        )
        return [asked]

    def adjust(self, **values: Any) -> dict[Any, Any]:
        """Ask for the changes; what was asked for leaves the form."""
        try:
            self.bench.service.adjust(rq.Adjust(**self.form.read(values)))
        except errors.WorkbenchError as error:
            return {self.said: failure_card(explain(error))}
        asked = el("p", "Asked for: it holds from the next step.", cls="aw-quiet")
        return {self.said: asked, **{each: "" for each in self.form.components.values()}}

    @property
    def drawn(self) -> list[Any]:
        """What follows the session."""
        return [self.panel, self.said]

    def show(
        self, snapshot: rs.Snapshot, run: rs.RunSummary | None, events: list[Event]
    ) -> dict[Any, Any]:
        """Show the form while this run goes on, and what was changed last."""
        job = snapshot.job
        going = run is not None and job is not None and job.run_id == run.id and not job.stopping
        changes = [event.text for event in events if event.type == "adjusted" and event.text]
        said = evidence(changes[-1]) if going and changes else NOTHING
        return {self.panel: gr.update(visible=going), self.said: said}
