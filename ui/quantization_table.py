"""The table of quantisations before a base is loaded: memory, speed, what works, and which one."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui import tables, text
from ui.bench import Bench
from ui.feedback import explain
from ui.forms import Form
from ui.safe_view import Node, button, clicked, el, safe_view

TABLE_SECONDS = 120.0
FIELDS = ("source", "precision", "device", "revision")
QUIET = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
EMPTY: Node = el("div", cls="aw-quantizations")


class QuantizationPicker:
    """Shows the table for the base in a load form; a click on a row chooses its quantisation."""

    def __init__(self, bench: Bench, form: Form) -> None:
        self.bench = bench
        self.form = form
        self.view = safe_view(EMPTY, label="Quantisations of this base", elem_id="quantizations")
        self.key = gr.State("")
        """Changes when the table is out of date; see `key_for`."""

    def connect(self) -> None:
        """Draw the table when the form names another base, and when `key` changes."""
        inputs = [self.form.components[name] for name in FIELDS]
        gr.on(
            [self.key.change, *(self.form.components[name].change for name in FIELDS)],
            self.compare,
            inputs,
            self.view,
            trigger_mode="always_last",
            **QUIET,
        )
        self.view.click(
            self.act, inputs, [self.view, self.form.components["quantization"]], **QUIET
        )

    def key_for(self, snapshot: rs.Snapshot) -> Any:
        """Return what the table depends on in a session; nothing new while a job is running.

        So the first one is drawn by the idle worker, and no page start pays for a second process.
        """
        if snapshot.job is not None or snapshot.phase == "down":
            return gr.skip()
        base = snapshot.base
        return f"{base.fingerprint} {base.quantization}" if base is not None else "no base"

    def compare(self, *values: Any) -> Node:
        """Return the table for the base that the form names."""
        return self._table(dict(zip(FIELDS, values, strict=True)), measure=False)

    def act(self, *values: Any, event: gr.EventData) -> tuple[Any, Any]:
        """Choose the clicked quantisation, or measure the speed on this machine."""
        act, argument = clicked(event)
        if act == "choose":
            return gr.skip(), argument
        if act == "measure":
            table = self._table(dict(zip(FIELDS, values, strict=True)), measure=True)
            return table, gr.skip()
        return gr.skip(), gr.skip()

    def _table(self, values: Mapping[str, Any], *, measure: bool) -> Node:
        source = str(values["source"] or "").strip()
        if not source:
            return EMPTY
        try:
            request = rq.QuantizationTable(
                source=source,
                precision=values["precision"],
                device=values["device"],
                revision=str(values["revision"] or "").strip() or None,
                measure=measure,
            )
            table = self.bench.start(request).result(timeout=TABLE_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return el("p", explain(error).sentence, cls="aw-quiet")
        return quantization_table(table)


def quantization_table(table: rs.QuantizationTable) -> Node:
    """Describe the table: a row for each quantisation, the recommendation and its reason below."""
    rows = [_row(choice, table) for choice in table.choices]
    chosen = next(c for c in table.choices if c.quantization == table.recommended)
    return el(
        "div",
        tables.table("Quantisations", ("Keep as", "Memory", "A step takes", "Works", ""), rows),
        el("p", el("strong", f"Recommended: {chosen.title}. "), table.reason),
        el(
            "p",
            f"Speed: {table.speed_from}. ",
            None if "this machine" in table.speed_from else button("Measure it here", "measure"),
            cls="aw-quiet aw-help",
        ),
        cls="aw-quantizations",
    )


def _row(choice: rs.QuantizationChoice, table: rs.QuantizationTable) -> Node:
    memory = text.size(choice.memory_bytes)
    limits = f"not: {choice.cannot}" if choice.cannot else "everything"
    return el(
        "tr",
        tables.cell("Keep as", choice.title, el("div", choice.summary, cls="aw-quiet")),
        tables.cell("Memory", memory if choice.fits else f"{memory}, too big"),
        tables.cell("A step takes", _speed(choice.relative_seconds)),
        tables.cell("Works", limits, cls="aw-quiet"),
        tables.cell("", button("Choose", "choose", choice.quantization)),
        cls="selected" if choice.quantization == table.recommended else None,
    )


def _speed(relative: float) -> str:
    return "1x" if abs(relative - 1) < 0.005 else f"{relative:.2f}x"
