"""Saying which column of the data is what, where the names of the columns do not tell."""

from typing import Any

import gradio as gr

from backend import requests as rq
from backend import results as rs
from ui.components.forms import Form
from ui.components.safe_view import Node, el, safe_view
from ui.train.data_report import read_as

PATHS = tuple(f"columns.{name}" for name in rq.Columns.model_fields)
NONE = ("none", "")


class ColumnPicker:
    """A dropdown for each role a column can have; folded away while the columns tell by name."""

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
        """What a look at the data fills."""
        return [self.group, self.opened, self.note, *self.components]

    def show(self, look: rs.DataPreview | None) -> list[Any]:
        """Offer the columns that the data has; opened where somebody has to choose."""
        if look is None:
            return [gr.skip()] * len(self.drawn)
        choices = [NONE, *((column, column) for column in look.columns)]
        opened = [gr.skip(), gr.skip()] if look.shape else [gr.update(visible=True), True]
        return [*opened, _note(look), *(gr.update(choices=choices) for _ in self.components)]

    def toggle(self, shown: bool) -> tuple[bool, Any]:
        """Open or fold the choice."""
        return not shown, gr.update(visible=not shown)

    def cleared(self) -> list[Any]:
        """Return what is shown when other data was chosen: nothing of the old, folded away."""
        return [gr.update(visible=False), False, *([""] * len(self.components))]

    @property
    def emptied(self) -> list[Any]:
        """What `cleared` fills."""
        return [self.group, self.opened, *self.components]


def _note(look: rs.DataPreview) -> Node:
    if look.shape:
        return el("p", f"{read_as(look.shape, look.shape_reason)} You may choose others.")
    return el("p", "The names of the columns do not tell what they are. Choose the question and "
                   "the answer, or a conversation, or plain text.")  # fmt: skip
