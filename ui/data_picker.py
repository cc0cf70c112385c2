"""Choosing training data: bundled sets, uploads, and a look at what the model will see of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui import data_sets, view
from ui.bench import Bench
from ui.feedback import explain, failure_card
from ui.forms import Form
from ui.safe_view import Node, el, safe_view
from ui.view import Check

CHECK_SECONDS = 180.0
LEARNED = "learned"
NOTHING: Node = el("div")


class DataPicker:
    """The data field of a form with everything around it."""

    def __init__(self, bench: Bench, form: Form) -> None:
        self.bench = bench
        demo = bench.service.settings.demo
        choices = data_sets.choices(bench.service.settings.uploads_dir)
        self.data = form.add(
            "data",
            choices=choices,
            value=choices[0][1] if choices else "",
            allow_custom_value=not demo,
            elem_id="train-data",
            elem_classes="aw-plain",
        )
        with gr.Row(elem_classes="aw-buttons"):
            self.upload = gr.UploadButton(
                "Upload a file", size="sm", interactive=not demo, elem_id="train-upload"
            )
            self.look = gr.Button("Look at what the model will see", size="sm")
        bench.keep_for_owner(self.data, allow_custom_value=True)
        bench.keep_for_owner(self.upload, interactive=True)
        self.line = safe_view(
            NOTHING, label="About the data", elem_id="data-line", elem_classes="aw-line"
        )
        self._build_preview()

    def _build_preview(self) -> None:
        with gr.Column(visible=False, elem_classes="aw-preview") as self.preview:
            self.problems = safe_view(NOTHING, label="Problems in the data")
            self.examples = gr.HighlightedText(
                label="Examples as the model sees them; tinted is what it learns to say",
                color_map={LEARNED: "#d9a441"},
                show_legend=False,
                show_inline_category=False,
                show_whitespaces=True,
                combine_adjacent=False,
                elem_id="train-preview",
            )
            self.close = gr.Button("Close", size="sm", elem_classes="aw-auto")

    def connect(
        self, inputs: dict[str, Any], request_from: Callable[[Mapping[str, Any]], rq.Train]
    ) -> None:
        """Wire the buttons; `request_from` turns the form's values into a request."""
        self._request_from = request_from
        quiet = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        shown = [self.preview, self.problems, self.examples]
        self.look.click(self.look_at_data, inputs_kwargs=inputs, outputs=shown, **quiet)
        self.close.click(self.hide_preview, None, self.preview, **quiet)
        self.data.change(self.hide_preview, None, self.preview, **quiet)  # it shows other data
        self.upload.upload(self.add_upload, self.upload, [self.data, self.line], **quiet)

    def add_upload(self, file: str) -> tuple[Any, Any]:
        """Take an uploaded file into the workspace and choose it."""
        service = self.bench.service
        try:
            if self.bench.demo:
                raise errors.Unsupported("This shared demo takes no uploads.")
            target = service.add_upload(Path(file), Path(file).name)
        except (errors.WorkbenchError, OSError) as error:
            return gr.skip(), failure_card(explain(error))
        choices = data_sets.choices(service.settings.uploads_dir)
        return gr.update(choices=choices, value=str(target)), NOTHING

    def look_at_data(self, **values: Any) -> tuple[Any, Any, Any]:
        """Show the first examples as the model would see them."""
        try:
            train = self._request_from({**values, "name": values["name"] or "preview"})
            request = rq.PreviewData(data=train.data, max_length=train.longest)
            preview = self.bench.start(request).result(timeout=CHECK_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return gr.update(visible=True), failure_card(explain(error)), []
        return gr.update(visible=True), row_problems(preview), highlighted(preview)

    def hide_preview(self) -> Any:
        """Fold the examples away."""
        return gr.update(visible=False)


def data_line(check: Check, source: str) -> Node:
    """Describe the chosen data in one line."""
    known = data_sets.bundled_set(source)
    return el("p", view.data_line(check, known.summary if known else ""))


def highlighted(preview: rs.DataPreview) -> list[tuple[str, str | None]]:
    """Turn examples into tinted text, a blank line apart."""
    pieces: list[tuple[str, str | None]] = []
    for number, example in enumerate(preview.examples):
        if number:
            pieces.append(("\n\n", None))
        pieces.extend((text, LEARNED if learned else None) for text, learned in example.pieces)
    return pieces


def row_problems(preview: rs.DataPreview) -> Node:
    """List what is wrong with the data, by row."""
    if not preview.problems:
        shown = f"The first {len(preview.examples)} of {preview.rows} rows."
        return el("p", shown, cls="aw-quiet")
    items = [el("li", el("strong", f"Row {p.row}: "), p.what) for p in preview.problems]
    return el("div", el("ul", *items), cls="aw-note warn")
