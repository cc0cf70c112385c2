"""Choosing training data: bundled sets, uploads, and a preview of what the model will see."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.components import data_sets, units
from ui.components.event_options import QUIET
from ui.components.feedback import explain, failure_card
from ui.components.forms import Form
from ui.components.safe_view import Node, clicked, el, safe_view
from ui.components.service_handle import ServiceHandle
from ui.train import readiness
from ui.train.data.column_picker import ColumnPicker
from ui.train.data.data_report import report
from ui.train.data.hub_picker import HubPicker
from ui.train.readiness import Check

CHECK_SECONDS = 180.0
LEARNED = "learned"
NOTHING: Node = el("div")


class DataPicker:
    """The data field of the form with its buttons, messages and preview."""

    def __init__(self, handle: ServiceHandle, form: Form) -> None:
        self.handle, self.form = handle, form
        self.left = gr.State("")
        """The value of the data field when it last got the focus."""
        demo = handle.service.settings.demo
        choices = data_sets.choices(handle.service.settings.uploads_dir)
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
            self.look = gr.Button("Preview examples", size="sm")
            self.open_columns = gr.Button("Choose columns", size="sm", elem_id="train-open-columns")
        handle.keep_for_owner(self.data, allow_custom_value=True)
        handle.keep_for_owner(self.upload, interactive=True)
        self.line = safe_view(
            NOTHING, label="About the data", elem_id="data-line", elem_classes="aw-line"
        )
        # Not in the line above: the next check of the data would overwrite the reason.
        self.refused = safe_view(NOTHING, label="Upload", elem_id="data-refused")
        self.hub = HubPicker(handle)
        self.columns = ColumnPicker(form)
        self.placeholders = form.add("placeholders", visible=False, elem_id="train-placeholders")
        self._build_preview()

    def add_held_out(self) -> None:
        """Add the field for held-out data and its upload button at this place in the layout."""
        demo = self.handle.service.settings.demo
        sets = data_sets.choices(self.handle.service.settings.uploads_dir)
        with gr.Column(min_width=150, elem_classes="aw-with-upload"):
            self.held_out = self.form.add(
                "held_out",
                choices=held_out_choices(sets),
                value="",
                allow_custom_value=not demo,
                elem_id="train-held_out",
            )
            self.upload_held_out = gr.UploadButton(
                "Upload held-out data",
                size="sm",
                interactive=not demo,
                elem_id="train-upload-held-out",
                elem_classes="aw-auto",
            )
            self.refused_held_out = safe_view(NOTHING, label="Upload of held-out data")
        self.handle.keep_for_owner(self.held_out, allow_custom_value=True)
        self.handle.keep_for_owner(self.upload_held_out, interactive=True)

    def _build_preview(self) -> None:
        with gr.Column(visible=False, elem_classes="aw-preview") as self.preview:
            self.problems = safe_view(NOTHING, label="What is in the data", elem_id="data-report")
            self.examples = gr.HighlightedText(
                label="Examples as the model sees them; tokens with loss are tinted",
                color_map={LEARNED: "#d9a441"},
                show_legend=False,
                show_inline_category=False,
                show_whitespaces=True,
                combine_adjacent=False,
                elem_id="train-preview",
            )
            self.close = gr.Button("Close", size="sm", elem_classes="aw-auto")

    def connect(
        self,
        inputs: dict[str, Any],
        request_from: Callable[[Mapping[str, Any]], rq.Train],
        drop_bad_rows: Component,
        check_key: gr.Textbox,
    ) -> None:
        """Wire the buttons; `request_from` turns the form's values into a request."""
        self._request_from = request_from
        shown = [self.preview, self.problems, self.examples]
        look = {"inputs_kwargs": inputs, "outputs": shown, **QUIET}
        self.look.click(self.look_at_data, **look)
        self.problems.click(self.leave_bad_rows_out, None, drop_bad_rows, **QUIET).then(
            self.look_at_data, **look
        )
        self.close.click(self.hide_preview, None, self.preview, **QUIET)
        self.data.change(self.hide_preview, None, self.preview, **QUIET)  # of other data
        self.data.input(forget, None, self.refused, **QUIET)
        chosen = [*self.columns.emptied, drop_bad_rows, self.held_out, self.placeholders]
        self.columns.note.click(self.columns.use_offer, None, self.columns.components, **QUIET)
        self.data.focus(lambda source: source, self.data, self.left, **QUIET)
        self.data.input(self.choose, [self.data, self.left], chosen, **QUIET)
        for chosen_part in self.hub.connect(self.data, check_key):
            chosen_part.then(self.begin_anew, None, chosen, **QUIET)
        opened = [self.columns.opened, self.columns.group]
        self.open_columns.click(self.columns.toggle, self.columns.opened, opened, **QUIET)
        self.upload.upload(
            self.add_upload, self.upload, [*self.offered, self.refused], **QUIET
        ).then(self.begin_anew, None, chosen, **QUIET)
        self.held_out.input(forget, None, self.refused_held_out, **QUIET)
        self.upload_held_out.upload(
            self.add_held_out_upload,
            self.upload_held_out,
            [*self.offered, self.refused_held_out],
            **QUIET,
        )

    def add_upload(self, file: str) -> dict[Any, Any]:
        """Copy an uploaded file into the workspace and choose it as training data."""
        return self._take(file, self.data, self.refused)

    def add_held_out_upload(self, file: str) -> dict[Any, Any]:
        """Copy an uploaded file into the workspace and choose it as held-out data."""
        return self._take(file, self.held_out, self.refused_held_out)

    def _take(self, file: str, field: Component, refused: Component) -> dict[Any, Any]:
        try:
            if self.handle.demo:
                raise errors.Unsupported("Uploads are disabled in this shared demo.")
            target = self.handle.service.add_upload(Path(file), Path(file).name)
        except (errors.WorkbenchError, OSError) as error:
            return {refused: failure_card(explain(error))}
        offered = {part: gr.update(**news) for part, news in self.offered.items()}
        offered[field]["value"] = str(target)
        return {**offered, refused: NOTHING}

    @property
    def offered(self) -> dict[Component, dict[str, Any]]:
        """The current choices. A page that was built before an upload does not have it yet."""
        sets = data_sets.choices(self.handle.service.settings.uploads_dir)
        return {self.data: {"choices": sets}, self.held_out: {"choices": held_out_choices(sets)}}

    def look_at_data(self, **values: Any) -> tuple[Any, Any, Any]:
        """Show the first examples as the model would see them, and a report on all rows."""
        try:
            train = self._request_from({**values, "name": values["name"] or "preview"})
            self.hub.require_downloaded(train)
            preview = self.first_look(train)
            if preview.quick and preview.shape:
                preview = self._ask(preview_of(train))
        except (errors.WorkbenchError, TimeoutError) as error:
            return gr.update(visible=True), failure_card(explain(error)), []
        shown = report(preview, train.longest, left_out=train.drop_bad_rows)
        return gr.update(visible=True), shown, highlighted(preview)

    def first_look(self, train: rq.Train) -> rs.DataPreview:
        """Return the first rows and the columns, and whether all rows were checked at once."""
        return self._ask(preview_of(train).model_copy(update={"every_row": False}))

    def wait_for_all(self, check: Check, train: rq.Train) -> Check | None:
        """Return an intermediate check while large data is read; None when that is done."""
        if check.look is None or check.look.quick:
            return None
        try:
            done = self._prepared(train)
        except errors.WorkbenchError as error:
            return check.model_copy(update={"failure": explain(error), "unprepared": True})
        return None if done else check.model_copy(update={"preparing": True})

    def _prepared(self, train: rq.Train) -> bool:
        """Return whether large data was read completely; starts reading it if not.

        Raises the error of a failed attempt, which is not repeated automatically.
        """
        request = rq.PrepareData(
            data=train.data,
            columns=train.columns,
            held_out=train.held_out,
            **what_is_learned(train),
        )
        job = self.handle.last("prepare-data", request)
        if job is None:
            self.handle.start(request)
            return False
        if not job.done():
            return False
        job.result(timeout=0)
        return True

    def choose(self, source: str, left: str) -> Any:
        """Reset the choices if the source changed; Gradio 6.31 also sends `input` on blur."""
        afresh = self.begin_anew()
        return [gr.skip()] * len(afresh) if source == left else afresh

    def begin_anew(self) -> list[Any]:
        """Reset what was chosen for other data: columns, dropped rows, held-out data, texts."""
        return [*self.columns.cleared(), False, "", gr.update(value="", visible=False)]

    def connect_findings(self, checking: Any, check: Component) -> Any:
        """Show what a check of the settings found in the data; return the last event."""
        read = [check, self.placeholders]
        return checking.then(self.show_findings, read, self.drawn, **QUIET)

    @property
    def drawn(self) -> list[Any]:
        """The components that `show_findings` draws."""
        return [*self.columns.drawn, self.placeholders, *self.hub.drawn]

    def show_findings(self, check: Check, texts: str) -> list[Any]:
        """Offer columns, ask for the texts of placeholders, and describe a Hub set."""
        asked = asked_texts(check, texts)
        return [*self.columns.show(check.look), asked, *self.hub.show(check)]

    def leave_bad_rows_out(self, event: gr.EventData) -> Any:
        """Leave out the rows that cannot be used."""
        return True if clicked(event)[0] == "drop" else gr.skip()

    def _ask(self, request: rq.PreviewData) -> rs.DataPreview:
        preview: rs.DataPreview = self.handle.start(request).result(timeout=CHECK_SECONDS)
        return preview

    def hide_preview(self) -> Any:
        """Hide the preview."""
        return gr.update(visible=False)


def asked_texts(check: Check, texts: str) -> Any:
    """Show the field for placeholders where the data has some, with their names to fill in."""
    stats = check.report.stats if check.report else None
    found = stats.placeholders if stats else check.look.placeholders if check.look else ()
    if not found:
        if texts.strip():
            return gr.update(visible=True)
        return gr.skip() if check.look is None else gr.update(visible=False)
    if texts.strip():
        return gr.update(visible=True)
    names = "\n".join(f"{each.name} = " for each in found)
    rows = units.plural(max(each.rows for each in found), "row")
    asks = f"{rows} of the data have places for your own words. Write each after its name."
    return gr.update(visible=True, value=names, info=asks)


def held_out_choices(sets: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the choices of held-out data."""
    return [("a share of the examples", ""), *sets]


def forget() -> Node:
    """Clear the message about a refused upload, because something else was chosen."""
    return NOTHING


def preview_of(train: rq.Train) -> rq.PreviewData:
    """Return the request that previews a run's data."""
    return rq.PreviewData(
        data=train.data,
        columns=train.columns,
        max_length=train.longest,
        long_examples=train.long_examples,
        drop_bad_rows=train.drop_bad_rows,
        **what_is_learned(train),
    )


def what_is_learned(train: rq.Train) -> dict[str, Any]:
    """Return the settings of a run that decide which part of its examples has a loss."""
    names = ("answers", "learn_thoughts", "date", "placeholders")
    return {name: getattr(train, name) for name in names}


def data_line(check: Check, source: str) -> Node:
    """Describe the chosen data in one line, and below it how they were read and what was not."""
    known = data_sets.bundled_set(source)
    line = el("p", readiness.data_line(check, known.summary if known else ""))
    return el("div", line, *(el("p", note, cls="aw-small") for note in readiness.notes(check)))


def highlighted(preview: rs.DataPreview) -> list[tuple[str, str | None]]:
    """Turn examples into tinted text, a blank line apart."""
    pieces: list[tuple[str, str | None]] = []
    for number, example in enumerate(preview.examples):
        if number:
            pieces.append(("\n\n", None))
        left_out = f", left out: {example.left_out}" if example.left_out else ""
        pieces.append((f"Row {example.row}{left_out}\n", None))
        if left_out and example.tokens <= 1:
            continue  # only the start-of-text token is left
        pieces.extend((text, LEARNED if learned else None) for text, learned in example.pieces)
    return pieces
