"""Converting an adapter into a plain LoRA copy: the choice of its rank, and the result.

Hot-swap and Combine each have one, for adapters that they cannot use directly. Each shows only the
conversions that it started itself.
"""

from typing import Any

import gradio as gr

from backend import Job, errors
from backend import requests as rq
from backend import results as rs
from ui.components.feedback import Failure, evidence, explain, failure_card
from ui.components.forms import Form
from ui.components.safe_view import Node, clicked, el, safe_view
from ui.components.service_handle import ServiceHandle, error_of

NEAR = 0.1
"""Above this relative error, a converted adapter is not equivalent to the original."""
NOTHING: Node = el("div")


class Converter:
    """A rank field, shown if something can be converted, and the last conversion's result."""

    def __init__(self, handle: ServiceHandle, place: str) -> None:
        self.handle = handle
        self.form = Form(rq.ConvertAdapter)
        self.job: Job | None = None
        self.refused: Failure | None = None
        self.rank = self.form.add(
            "rank",
            label="Rank of a converted adapter",
            visible=False,
            elem_id=f"{place}-convert-rank",
            elem_classes="aw-short",
        )
        self.news = safe_view(NOTHING, label="Converted", elem_id=f"{place}-converted")

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` draws."""
        return [self.rank, self.news]

    def convert(self, rank: str, event: gr.EventData) -> None:
        """Start converting the adapter whose button was clicked; returns at once."""
        act, name = clicked(event)
        if act != "convert":
            return
        self.forget()
        try:
            self.job = self.handle.convert(name, **self.form.read({"rank": rank}))
        except errors.WorkbenchError as error:
            self.refused = explain(error)
            self.handle.version += 1

    def forget(self) -> None:
        """Clear the result of the last conversion, because something else was started."""
        self.job, self.refused = None, None
        self.handle.version += 1

    def show(self, snapshot: rs.Snapshot, *, needed: bool) -> dict[Any, Any]:
        """Draw the rank field if something can be converted, and the result."""
        return {self.rank: gr.update(visible=needed), self.news: self._news(snapshot)}

    def _news(self, snapshot: rs.Snapshot) -> Node:
        running = snapshot.job
        if running is not None and self.job is not None and running.id == self.job.id:
            doing = running.text or "this takes a moment"
            return el("p", f"{running.title}: {doing}.", cls="aw-quiet")
        failure = self.refused or self._failure()
        if failure is not None:
            return failure_card(failure, title="The conversion failed")
        made = self._made(snapshot)
        return converted(made) if made is not None else NOTHING

    def _failure(self) -> Failure | None:
        error = error_of(self.job) if self.job is not None else None
        return explain(error) if error is not None else None

    def _made(self, snapshot: rs.Snapshot) -> rs.Converted | None:
        """Return the result with the adapter's current name; None without a result or adapter."""
        if self.job is None or not self.job.done():
            return None
        made: rs.Converted = self.job.result(timeout=0)
        adapter = next((a for a in snapshot.adapters if a.id == made.adapter.id), None)
        return made.model_copy(update={"adapter": adapter}) if adapter is not None else None


def converted(result: rs.Converted) -> Node:
    """Show how close a converted adapter is to its original; layers are collapsed."""
    if result.relative_error < 1e-4:
        how = "It is exact: it changes the base in the same way as the original."
    else:
        how = (
            f"Its weight changes differ from the original's by {result.relative_error:.1%}. "
            "A higher rank gets closer."
        )
    layers = [
        el("div", el("dt", name), el("dd", f"{error:.1%}" if error >= 1e-4 else "0"))
        for name, error in result.relative_error_per_layer.items()
    ]
    near = result.relative_error <= NEAR
    return el(
        "div",
        el("p", f"{result.adapter.name} is plain LoRA of rank {result.rank}. {how}"),
        None
        if near
        else el("p", el("strong", "The difference is large: treat it as another adapter.")),
        evidence("Verified: its saved files give the same answers as the converted adapter."),
        el(
            "details",
            el("summary", "Difference per layer"),
            el("dl", *layers, cls="aw-facts"),
            cls="aw-details",
        ),
        cls="aw-note good" if near else "aw-note warn",
    )
