"""The form that changes a run while it trains: learning rate, total steps, test questions."""

from typing import Any

import gradio as gr

from backend import Event, errors
from backend import requests as rq
from backend import results as rs
from ui.components.event_options import QUIET
from ui.components.feedback import evidence, explain, failure_card
from ui.components.forms import Form
from ui.components.safe_view import Node, el, safe_view
from ui.components.service_handle import ServiceHandle

NOTHING: Node = el("div")


def as_text(now: rq.Adjust) -> dict[str, str]:
    """Return a run's settings as the texts that the form shows."""
    return {
        "learning_rate": f"{now.learning_rate:.3g}" if now.learning_rate else "",
        "total_steps": str(now.total_steps or ""),
        "watch": "\n".join(now.watch or []),
    }


class AdjustPanel:
    """A small form next to the live run; hidden when no run is active."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.form = Form(rq.Adjust)
        with gr.Column(visible=False, elem_id="adjust") as self.panel:
            with gr.Accordion("Change this run while it trains", open=False) as self.fold:
                with gr.Row(elem_classes="aw-fields"):
                    for path in ("learning_rate", "total_steps"):
                        self.form.add(path, min_width=150, elem_id=f"adjust-{path}")
                self.form.add("watch", elem_id="adjust-watch")
                self.go = gr.Button(
                    "Apply from the next step",
                    size="sm",
                    elem_id="adjust-go",
                    elem_classes="aw-auto",
                )
            self.said = safe_view(NOTHING, label="Changes of the run")
        self.filled = gr.State({})

    def connect(self) -> list[Any]:
        """Wire the form; returns the events after which the page is redrawn."""
        fields = [*self.form.components.values(), self.filled]
        self.fold.expand(self.fill, None, fields, **QUIET)
        asked = self.go.click(
            self.adjust,
            inputs_kwargs={**self.form.inputs, "filled": self.filled},
            outputs=[self.said, *fields],
            **QUIET,
        )
        return [asked]

    def fill(self) -> dict[Any, Any]:
        """Show the current settings when the form is opened."""
        job = self.handle.service.snapshot().job
        if job is None or job.run_id is None:
            return {self.filled: {}}
        now = as_text(self.handle.service.settings_now(job.run_id))
        return {**{self.form.components[path]: now[path] for path in now}, self.filled: now}

    def adjust(self, filled: dict[str, str], **values: Any) -> dict[Any, Any]:
        """Request only the fields that differ from when the form was opened."""
        wanted = {path: str(value or "").strip() for path, value in values.items()}
        changed = {path: value for path, value in wanted.items() if value != filled.get(path, "")}
        if not changed:
            return {self.said: el("p", "Change one of the fields first.", cls="aw-quiet")}
        try:
            asked = {each: self.form.read(wanted)[each] for each in changed}
            if "watch" in asked and asked["watch"] is None:
                asked["watch"] = []  # emptied: no test questions any more
            self.handle.service.adjust(rq.Adjust(**asked))
        except errors.WorkbenchError as error:
            return {self.said: failure_card(explain(error))}
        said = el("p", "Change requested; applies from the next step.", cls="aw-quiet")
        return {self.said: said, self.filled: wanted}

    @property
    def drawn(self) -> list[Any]:
        """The components that follow the session."""
        return [self.panel, self.said, self.fold]

    def show(
        self, snapshot: rs.Snapshot, run: rs.RunSummary | None, events: list[Event]
    ) -> dict[Any, Any]:
        """Show the form while this run is active, and the last change."""
        job = snapshot.job
        going = run is not None and job is not None and job.run_id == run.id and not job.stopping
        changes = [event.text for event in events if event.type == "adjusted" and event.text]
        said = evidence(changes[-1]) if going and changes else NOTHING
        # Closed when no run is active: opening it fills in the next run's settings.
        fold = gr.skip() if going else gr.update(open=False)
        return {self.panel: gr.update(visible=going), self.said: said, self.fold: fold}
