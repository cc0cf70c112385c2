"""The table of quantisations for a base: memory, speed, supported methods, and the choice."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from backend import MODEL_NAMES, errors
from backend import requests as rq
from backend import results as rs
from ui.components import tables, units
from ui.components.event_options import QUIET, hidden_key
from ui.components.feedback import explain
from ui.components.forms import Form
from ui.components.safe_view import Node, button, clicked, el, safe_view
from ui.components.service_handle import ServiceHandle

TABLE_SECONDS = 120.0
FIELDS = ("source", "precision", "device", "revision", "double_quant", "quantization")
HEADS = ("Format", "Memory", "A run adds", "Time per step", "Methods", "")
EMPTY: Node = el("div", cls="aw-quantizations")
LATER: Node = el(
    "p",
    "Memory for each option appears here shortly. During a run it appears when the run is done, or "
    "when you change a field.",
    cls="aw-quiet",
)


class QuantizationPicker:
    """Shows the table for the base in the form; a click on a row chooses its quantisation."""

    def __init__(self, handle: ServiceHandle, form: Form) -> None:
        self.handle = handle
        self.form = form
        self.view = safe_view(LATER, label="Quantisations of this base", elem_id="quantizations")
        self.key = hidden_key()
        """Changes when the table is out of date; see `key_for`."""

    def connect(self) -> None:
        """Draw the table when the user enters another base, and when `key` changes.

        Not when a new page fills the form: during a run that would start another process.
        """
        inputs = [self.form.components[name] for name in FIELDS]
        source = self.form.components["source"]
        source.input(self.looking, source, self.view, **QUIET)
        gr.on(
            [self.key.change, *(self.form.components[name].input for name in FIELDS)],
            self.compare,
            inputs,
            self.view,
            trigger_mode="always_last",
            **QUIET,
        )
        self.view.click(
            self.act,
            inputs_kwargs={name: self.form.components[name] for name in FIELDS},
            outputs=[self.view, self.form.components["quantization"]],
            **QUIET,
        )

    def key_for(self, snapshot: rs.Snapshot) -> Any:
        """Return what the table depends on in the session; unchanged while a job is running.

        So the idle worker computes the first table, and opening a page starts no second process.
        """
        if snapshot.job is not None or snapshot.phase == "down":
            return gr.skip()
        base = snapshot.base
        return base.loaded_as if base is not None else "no base"

    def looking(self, source: str | None) -> Any:
        """Clear the table of the previous base if the new one takes a while."""
        name = (source or "").strip()
        if not name or name in MODEL_NAMES or name.startswith(("/", ".", "~")):  # fast
            return gr.skip()
        return el("p", f"Reading {units.shorten(name, 60)}.", cls="aw-quiet")

    def compare(self, *values: Any) -> Node:
        """Return the table for the base that the form names."""
        return self._table(dict(zip(FIELDS, values, strict=True)), measure=False)

    def act(self, event: gr.EventData, **values: Any) -> tuple[Any, Any]:
        """Choose the clicked quantisation, or measure the speed on this machine."""
        act, argument = clicked(event)
        if act == "choose":
            return self._table({**values, "quantization": argument}, measure=False), argument
        if act == "measure":
            table = self._table(values, measure=True)
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
                double_quant=bool(values["double_quant"]),
                measure=measure,
            )
            table = self.handle.start(request).result(timeout=TABLE_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return el("p", explain(error).sentence, cls="aw-quiet")
        return quantization_table(table, str(values["quantization"]))


def quantization_table(table: rs.QuantizationTable, chosen: str) -> Node:
    """Show the recommendation with its reason, and a row for each quantisation."""
    if all(each.quantization != chosen for each in table.choices):
        chosen = table.recommended  # the kind that the files have already
    rows = [_row(choice, chosen) for choice in table.choices]
    best = next(c for c in table.choices if c.quantization == table.recommended)
    return el(
        "div",
        el("p", table.note) if table.note else None,
        el("p", el("strong", f"Recommended: {best.title}. "), table.reason),
        tables.table("Quantisations", HEADS, rows),
        el(
            "p",
            f"Speed: {table.speed_from}. ",
            None
            if "this machine" in table.speed_from or table.elsewhere
            else button("Measure it here", "measure"),
            cls="aw-quiet aw-help",
        ),
        cls="aw-quantizations",
    )


def _row(choice: rs.QuantizationChoice, chosen: str) -> Node:
    memory = units.size(choice.memory_bytes)
    mine = choice.quantization == chosen
    excluded = " and ".join(choice.cannot.rsplit(", ", 1))
    limits = f"all except {excluded}" if excluded else "all"
    offer = None if choice.blocker else button("Choose", "choose", choice.quantization)
    return el(
        "tr",
        tables.cell(
            "Format", choice.title, el("div", choice.blocker or choice.summary, cls="aw-quiet")
        ),
        tables.cell("Memory", memory if choice.fits else f"{memory}, too big"),
        tables.cell("A run adds", units.size(choice.run_bytes)),
        tables.cell("Time per step", _speed(choice.relative_seconds)),
        tables.cell(
            "Methods",
            "-" if choice.blocker else el("span", limits, title=choice.can),
            cls="aw-quiet",
        ),
        tables.cell("", el("span", "Chosen") if mine else offer),
        cls="selected" if mine else None,
    )


def _speed(relative: float) -> str:
    return "1x" if abs(relative - 1) < 0.005 else f"{relative:.2f}x"
