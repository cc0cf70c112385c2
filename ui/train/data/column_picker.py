"""Choosing the role of each column, for data whose column names are not recognised."""

import json
from typing import Any

import gradio as gr

from backend import requests as rq
from backend import results as rs
from ui.components.forms import Form
from ui.components.safe_view import Node, button, clicked, el, safe_view
from ui.train.data.data_report import read_as

PATHS = tuple(f"columns.{name}" for name in rq.Columns.model_fields)
NONE = ("none", "")


class ColumnPicker:
    """A dropdown for each role; hidden while the column names are recognised."""

    def __init__(self, form: Form) -> None:
        self.opened = gr.State(False)
        with gr.Column(visible=False, elem_id="train-columns") as self.group:
            self.note = safe_view(el("div"), label="The columns", elem_classes="aw-line")
            with gr.Row(elem_classes="aw-fields"):
                self.components = [
                    form.add(path, choices=[NONE], value="", allow_custom_value=True, min_width=150)
                    for path in PATHS
                ]

    @property
    def drawn(self) -> list[Any]:
        """The components that a data preview fills."""
        return [self.group, self.opened, self.note, *self.components]

    def show(self, look: rs.DataPreview | None) -> list[Any]:
        """Offer the columns of the data; opens the form if the roles have to be chosen."""
        if look is None:
            return [gr.skip()] * len(self.drawn)
        choices = [NONE, *((column, column) for column in look.columns)]
        opened = [gr.skip(), gr.skip()] if look.shape else [gr.update(visible=True), True]
        return [*opened, _note(look), *(gr.update(choices=choices) for _ in self.components)]

    def toggle(self, shown: bool) -> tuple[bool, Any]:
        """Show or hide the dropdowns."""
        return not shown, gr.update(visible=not shown)

    def use_offer(self, event: gr.EventData) -> list[Any]:
        """Choose the columns that the note offers for rows that are not for this as they are."""
        act, offered = clicked(event)
        if act != "columns":
            return [gr.skip()] * len(self.components)
        roles = json.loads(offered)
        return [roles.get(path.removeprefix("columns."), "") for path in PATHS]

    def cleared(self) -> list[Any]:
        """Return the values after other data was chosen: empty and hidden."""
        return [gr.update(visible=False), False, *([""] * len(self.components))]

    @property
    def emptied(self) -> list[Any]:
        """The components that `cleared` fills."""
        return [self.group, self.opened, *self.components]


def _note(look: rs.DataPreview) -> Node:
    if look.shape:
        return el("p", f"{read_as(look.shape, look.shape_reason)} You can choose other columns.")
    if look.unfit:
        use = button("Use these columns", "columns", json.dumps(look.instead), kind="mend")
        return el("div", el("p", f"{look.unfit.what} {look.unfit.cure}"),
                  use if look.instead else None)  # fmt: skip
    return el("p", "The column names are not recognised. Choose the question and the answer, or a "
                   "conversation, or plain text.")  # fmt: skip
