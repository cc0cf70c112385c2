"""The lower half of Load: adding adapters, and the details of the selected one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.adapters import adapter_detail
from ui.adapters.adapter_detail import report_card
from ui.adapters.push_panel import PushPanel
from ui.components import units
from ui.components.event_options import QUIET
from ui.components.feedback import evidence, explain, failure_card
from ui.components.safe_view import Node, el, facts, safe_view
from ui.components.service_handle import ServiceHandle
from ui.components.session_facts import BASE_COLOUR

WAIT_SECONDS = 600.0
NOTHING: Node = el("div")


class AddPanel:
    """Inspects an adapter from a folder, a zip or the Hub, and adds it."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.uploaded = gr.State("")
        demo = handle.service.settings.demo
        accordion = gr.Accordion(
            "Add an adapter", open=False, visible=not demo, elem_id="add-adapter"
        )
        handle.keep_for_owner(accordion, visible=True)
        with accordion:
            with gr.Row(elem_classes="aw-fields aw-baseline"):
                self.source = gr.Textbox(
                    label="Location",
                    info="A folder or zip with a PEFT or MLX adapter, or owner/repo, "
                    "owner/repo/folder@revision or an address on the Hugging Face Hub.",
                    max_lines=1,
                    elem_id="add-source",
                )
                self.name = gr.Textbox(
                    label="Name",
                    info="Name here. Leave empty to use its own.",
                    max_lines=1,
                    elem_id="add-name",
                )
            with gr.Row(elem_classes="aw-buttons"):
                self.inspect = gr.Button("Inspect", size="sm", elem_id="add-inspect")
                self.upload = gr.UploadButton(
                    "Upload a zip", size="sm", file_types=[".zip"], elem_id="add-upload"
                )
                self.add = gr.Button("Add", size="sm", interactive=False, elem_id="add-go")
            self.choice = gr.Dropdown(
                label="Another adapter in the same place",
                info="Choose one to inspect it instead.",
                visible=False,
                elem_id="add-choice",
            )
            self.report = safe_view(NOTHING, label="The inspected adapter", elem_id="add-report")

    def connect(self) -> list[Any]:
        """Wire the panel; returns the events after which the page is redrawn."""
        looked = [self.report, self.add, self.choice]
        self.inspect.click(self.look, self.source, looked, **QUIET)
        self.source.submit(self.look, self.source, looked, **QUIET)
        self.source.change(self.forget, [self.source, self.uploaded], looked, **QUIET)
        uploaded = self.upload.upload(
            self.take_upload, self.upload, [self.source, self.uploaded, self.report], **QUIET
        )
        uploaded.then(self.look, self.source, looked, **QUIET)
        chosen = self.choice.input(self.choose, self.choice, [self.source, self.uploaded], **QUIET)
        chosen.then(self.look_at_choice, self.source, [self.report, self.add], **QUIET)
        return [
            self.add.click(
                self.add_adapter,
                [self.source, self.name],
                [self.report, self.add, self.name],
                **QUIET,
            )
        ]

    def look(self, source: str) -> Iterator[tuple[Node, Any, Any]]:
        """Inspect without loading anything, and offer the other adapters in the same place."""
        for shown, add, report in self._looked(source):
            yield shown, add, _choices(source, report)

    def choose(self, source: str | None) -> tuple[Any, Any]:
        """Set another adapter of the same place as the source, as an upload does."""
        return (source, source) if source else (gr.skip(), gr.skip())

    def look_at_choice(self, source: str) -> Iterator[tuple[Node, Any]]:
        """Inspect the chosen adapter; the choice stays, so that another one can be chosen."""
        for shown, add, _ in self._looked(source):
            yield shown, add

    def _looked(self, source: str) -> Iterator[tuple[Node, Any, rs.AdapterReport | None]]:
        if not (source or "").strip():
            yield el("p", "Enter the location of the adapter first.", cls="aw-quiet"), _off(), None
            return
        yield el("p", "Inspecting it; nothing is loaded.", cls="aw-quiet"), _off(), None
        try:
            job = self.handle.start(rq.InspectAdapter(source=source.strip()))
            report: rs.AdapterReport = job.result(timeout=WAIT_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            yield failure_card(explain(error)), _off(), None
            return
        yield report_card(report), gr.update(interactive=report.verdict != "cannot"), report

    def forget(self, source: str, uploaded: str) -> tuple[Any, Any, Any]:
        """Clear the report because the source changed.

        Not after an upload or a choice, which set the source themselves: the report may already be
        there.
        """
        if uploaded and source == uploaded:
            return gr.skip(), gr.skip(), gr.skip()
        return NOTHING, _off(), _choices(source, None)

    def take_upload(self, file: str) -> tuple[Any, Any, Node]:
        """Copy a zip into the workspace and set it as the source."""
        try:
            target = self.handle.service.add_adapter_upload(Path(file), Path(file).name)
        except (errors.WorkbenchError, OSError) as error:
            return gr.skip(), gr.skip(), failure_card(explain(error))
        return str(target), str(target), NOTHING

    def add_adapter(self, source: str, name: str) -> Iterator[tuple[Any, ...]]:
        """Add the inspected adapter to session and library."""
        yield el("p", "Adding and verifying it.", cls="aw-quiet"), _off(), gr.skip()
        try:
            request = rq.LoadAdapter(source=source.strip(), name=(name or "").strip())
            loaded: rs.LoadedAdapter = self.handle.start(request).result(timeout=WAIT_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            yield failure_card(explain(error)), gr.update(interactive=True), gr.skip()
            return
        yield loaded_card(loaded), _off(), ""


class DetailPanel:
    """The selected adapter: what it changes, its effect, and the actions on it.

    The Load tab draws `panel` and `head` from the library: the panel is hidden when the selected
    adapter does not exist, for example because another browser tab deleted it.
    """

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.opened = gr.State("")
        demo = handle.service.settings.demo
        with gr.Column(visible=False, elem_classes="aw-column aw-detail") as self.panel:
            self.head = safe_view(NOTHING, label="The selected adapter")
            with gr.Row(elem_classes="aw-split"):
                with gr.Column(scale=6, min_width=300):
                    self.report = safe_view(NOTHING, label="What it changes", elem_id="detail")
                with gr.Column(scale=5, min_width=300, elem_classes="aw-column"):
                    self._build_is_it_on()
                    self._build_actions(demo)

    def _build_is_it_on(self) -> None:
        self.prompt = gr.Textbox(
            "Where is the cat?",
            label="Check its effect",
            info="Likelihood of the next word, with and without the adapter.",
            max_lines=2,
            elem_id="is-it-on",
        )
        self.ask = gr.Button("Show the next word", size="sm", elem_classes="aw-auto")
        self.words = safe_view(NOTHING, label="Next word", elem_id="next-words")

    def _build_actions(self, demo: bool) -> None:
        with gr.Row(elem_classes="aw-fields aw-baseline"):
            self.new_name = gr.Textbox(label="New name", max_lines=1, elem_id="new-name")
            self.save_to = gr.Textbox(
                label="Save a copy to",
                placeholder="a new folder's name or path",
                max_lines=1,
                visible=not demo,
                elem_id="save-to",
            )
        with gr.Row(elem_classes="aw-buttons"):
            self.rename = gr.Button("Rename", size="sm")
            self.save = gr.Button("Save a copy", size="sm", visible=not demo)
            self.pack = gr.Button("Make a zip", size="sm", elem_id="pack")
            self.download = gr.DownloadButton("Download", size="sm", visible=False)
            self.unload = gr.Button("Unload from model", size="sm")
            self.delete = gr.Button("Delete", size="sm", elem_id="delete-adapter")
        self.handle.keep_for_owner(self.save_to, self.save, visible=True)
        self.done = safe_view(NOTHING, label="What was done")
        self.push = PushPanel(self.handle)

    def connect(self, chosen: gr.State) -> list[Any]:
        """Wire the panel; returns the events after which the page is redrawn."""
        self.ask.click(self.next_words, [chosen, self.prompt], self.words, **QUIET)
        self.prompt.submit(self.next_words, [chosen, self.prompt], self.words, **QUIET)
        self.pack.click(self.make_zip, chosen, [self.download, self.done], **QUIET)
        sent = [self.push.done, self.push.send]
        self.push.send.click(self.push.push, [chosen, *self.push.fields], sent, **QUIET)
        saved = self.save.click(self.save_copy, [chosen, self.save_to], self.done, **QUIET)
        return [
            saved,
            self.rename.click(self.rename_adapter, [chosen, self.new_name], self.done, **QUIET),
            self.unload.click(self.take_off, chosen, self.done, **QUIET),
            self.delete.click(self.delete_adapter, chosen, self.done, **QUIET),
        ]

    @property
    def changing(self) -> list[Any]:
        """The buttons that change the adapter; disabled while the model is busy."""
        return [self.rename, self.unload, self.delete]

    @property
    def shown(self) -> list[Any]:
        """The components that `show` draws."""
        return [
            self.opened, self.report, self.new_name, self.download, self.words, self.done,
            self.push.done,
        ]  # fmt: skip

    def show(self, chosen: str, opened: str) -> Iterator[tuple[Any, ...]]:
        """Fill the panel for a newly selected adapter; then add its measurements."""
        info = self.handle.adapter(chosen)
        if info is None or chosen == opened:  # any click in the table, also on a slider
            yield (gr.skip(),) * len(self.shown)
            return
        measuring = el("p", "Measuring what it changes.", cls="aw-quiet")
        yield chosen, measuring, info.name, gr.update(visible=False), NOTHING, NOTHING, NOTHING
        try:
            job = self.handle.start(rq.InspectAdapter(source=f"library:{info.name}"))
            drawn = _measured(job.result(timeout=WAIT_SECONDS))
        except (errors.WorkbenchError, TimeoutError) as error:
            drawn = failure_card(explain(error))
        yield gr.skip(), drawn, *([gr.skip()] * (len(self.shown) - 2))

    def next_words(self, chosen: str, prompt: str) -> Node:
        """Show the probabilities of the next word with and without the adapter."""
        try:
            info = self.handle.require_adapter(chosen)
            on = dict(self.handle.service.snapshot().active).get(info.name)
            variant = [(info.name, 1.0 if on is None else on)]
            request = rq.NextToken(prompt=(prompt or "").strip() or " ", variants=[[], variant])
            result = self.handle.start(request).result(timeout=WAIT_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return failure_card(explain(error))
        names = [("Base", BASE_COLOUR), (info.name, info.colour)]
        return adapter_detail.next_words(result, names, active=on is not None)

    def make_zip(self, chosen: str) -> tuple[Any, Node]:
        """Pack the adapter for download."""
        try:
            path = self.handle.service.pack_adapter(self.handle.require_adapter(chosen).name)
        except errors.WorkbenchError as error:
            return gr.skip(), failure_card(explain(error))
        return gr.DownloadButton(f"Download {path.name}", value=str(path), visible=True), NOTHING

    def save_copy(self, chosen: str, destination: str) -> Node:
        """Write a copy of the adapter and show how it was verified."""
        try:
            if not (destination or "").strip():
                raise errors.InvalidRequest(
                    "No folder is given.", cure="Enter the name of a new folder."
                )
            name = self.handle.require_adapter(chosen).name
            folder = units.whole_path(destination, self.handle.service.settings.copies_dir)
            request = rq.SaveAdapter(name=name, destination=folder)
            return saved_card(self.handle.start(request).result(timeout=WAIT_SECONDS))
        except (errors.WorkbenchError, TimeoutError) as error:
            return failure_card(explain(error))

    def rename_adapter(self, chosen: str, new_name: str) -> Node:
        """Give the adapter its new name."""
        try:
            name = self.handle.require_adapter(chosen).name
            request = rq.RenameAdapter(name=name, new_name=new_name or "")
            info = self.handle.start(request).result(timeout=WAIT_SECONDS).adapter
        except (errors.WorkbenchError, TimeoutError) as error:
            return failure_card(explain(error))
        return el("p", f"It is now called {info.name}.", cls="aw-quiet")

    def take_off(self, chosen: str) -> Node:
        """Unload the adapter from the model; it stays in the library."""
        try:
            name = self.handle.require_adapter(chosen).name
            removed = self.handle.start(rq.UnloadAdapter(name=name)).result(timeout=WAIT_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return failure_card(explain(error))
        freed = units.size(removed.freed_bytes)
        return el("p", f"Unloaded, {freed} freed. It stays in the library.", cls="aw-quiet")

    def delete_adapter(self, chosen: str) -> Node:
        """Delete the adapter, which closes the panel; the table then offers Undo."""
        try:
            name = self.handle.require_adapter(chosen).name
            self.handle.start(rq.DeleteAdapter(name=name)).result(timeout=WAIT_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return failure_card(explain(error))
        return NOTHING


def loaded_card(loaded: rs.LoadedAdapter) -> Node:
    """Say what was added and how it was verified."""
    notes = [el("p", note, cls="aw-quiet") for note in loaded.notes]
    return el(
        "div",
        el("p", el("strong", f"{loaded.adapter.name} was added to the library and loaded.")),
        *notes,
        evidence(
            "Verified: the loaded adapter gives the same answers as plain PEFT "
            f"(largest difference {units.small(loaded.max_difference)})."
        ),
        cls="aw-note good",
    )


def saved_card(saved: rs.SavedAdapter) -> Node:
    """Say what was written, where, and how it was verified."""
    return el(
        "div",
        el(
            "p",
            f"{units.plural(saved.tensors, 'tensor')}, {units.size(saved.bytes)}, in:",
        ),
        el("p", saved.path, cls="aw-path"),
        evidence(
            "Verified: the copy gives the same answers when it is loaded "
            f"(largest difference {units.small(saved.max_difference)})."
        ),
        cls="aw-note good",
    )


def _choices(source: str, report: rs.AdapterReport | None) -> Any:
    """Offer the other adapters of a place, by their names there; hidden where there is none."""
    if report is None or not report.choices:
        return gr.update(visible=False, choices=[], value=None)
    place = f"{source.strip().rstrip('/')}/"
    named = [(other.removeprefix(place), other) for other in report.choices]
    return gr.update(visible=True, choices=named, value=None)


def _measured(report: rs.AdapterReport) -> Node:
    if not report.layers:
        return report_card(report)
    listed = facts(adapter_detail.report_facts(report))
    return el("div", adapter_detail.heat_map(report.layers), listed, cls="aw-report")


def _off() -> Any:
    return gr.update(interactive=False)
