"""The Load tab: the base model and its facts, and the library of adapters."""

from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui import tables, text
from ui.bench import Bench
from ui.feedback import evidence, explain, failure_card
from ui.forms import Form
from ui.quantization_table import QuantizationPicker
from ui.safe_view import Node, clicked, el, safe_view

QUICK_PICKS = [
    ("Starter (bundled)", "starter"),
    ("SmolLM2 135M Instruct (Hub)", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ("Qwen2.5 0.5B Instruct (Hub)", "Qwen/Qwen2.5-0.5B-Instruct"),
]
SAVE_SECONDS = 600.0
NOTHING: Node = el("div")


class LoadTab:
    """Builds the tab and answers its events."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.form = Form(rq.LoadModel)
        with gr.Row(elem_classes="aw-split"):
            with gr.Column(scale=5, min_width=300, elem_classes="aw-column"):
                self._build_source()
            with gr.Column(scale=6, min_width=300, elem_classes="aw-column"):
                gr.Markdown("## What is loaded", elem_classes="aw-head")
                self.facts = safe_view(tables.base_facts(None), label="Facts about the base")
                self.unload = gr.Button(
                    "Unload", size="sm", interactive=False, elem_classes="aw-auto"
                )
        gr.Markdown("## Adapters", elem_classes="aw-head")
        self.adapters = safe_view(NOTHING, label="Adapters", elem_id="adapters")
        self._build_save()

    def _build_source(self) -> None:
        demo = self.bench.service.settings.demo
        gr.Markdown("## Base model", elem_classes="aw-head")
        self.form.add(
            "source",
            choices=QUICK_PICKS[:1] if demo else QUICK_PICKS,
            allow_custom_value=not demo,
            elem_id="load-source",
            elem_classes="aw-plain",
        )
        self.form.add("precision")
        self.form.add("quantization", elem_id="load-quantization")
        with gr.Accordion("Advanced", open=False), gr.Row(elem_classes="aw-fields"):
            self.form.add("device", min_width=150)
            self.form.add("revision", min_width=150)
            self.form.add("double_quant", min_width=150)
            self.form.add("compute_dtype", min_width=150)
        self.load = gr.Button("Load starter", variant="primary", elem_id="load-go")
        self.note = safe_view(NOTHING, label="Loading")
        self.quantizations = QuantizationPicker(self.bench, self.form)

    def _build_save(self) -> None:
        demo = self.bench.service.settings.demo
        with gr.Accordion("Save a copy", open=False, visible=not demo):
            with gr.Row(elem_classes="aw-fields aw-baseline"):
                self.save_name = gr.Dropdown([], label="Adapter", info="Which one to copy.")
                self.save_to = gr.Textbox(
                    label="Folder", info="A new or empty folder for the copy.", max_lines=1
                )
            self.save = gr.Button("Save a copy", size="sm", elem_classes="aw-auto")
            self.saved = safe_view(NOTHING, label="The saved copy")

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the whole page is drawn again."""
        quiet = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        source = self.form.components["source"]
        source.change(self.name_button, source, self.load, **quiet)
        self.quantizations.connect()
        self.save.click(self.save_copy, [self.save_name, self.save_to], self.saved, **quiet)
        return [
            self.load.click(
                self.load_base, inputs_kwargs=self.form.inputs, outputs=self.note, **quiet
            ),
            self.unload.click(self.unload_base, None, self.note, **quiet),
            self.adapters.click(self.switch, None, self.note, **quiet),
        ]

    def name_button(self, source: str) -> Any:
        """Let the button say what it will load."""
        return gr.update(value=f"Load {text.shorten(source or 'nothing', 40)}")

    def load_base(self, **values: Any) -> Node:
        """Start loading the base and return at once."""
        try:
            self.bench.start(rq.LoadModel(**self.form.read(values)))
        except errors.WorkbenchError as error:
            return failure_card(explain(error))
        return NOTHING

    def unload_base(self) -> Node:
        """Let the base go."""
        return self._start(rq.UnloadModel())

    def switch(self, event: gr.EventData) -> Any:
        """Turn an adapter on or off."""
        act, name = clicked(event)
        if act not in ("on", "off"):
            return gr.skip()
        return self._start(rq.SetActive(adapters=[(name, 1.0)] if act == "on" else []))

    def save_copy(self, name: str | None, destination: str) -> Node:
        """Write a copy of an adapter and show how it was verified."""
        try:
            if not name:
                raise errors.InvalidRequest("No adapter is chosen.", cure="Train one first.")
            if not destination.strip():
                raise errors.InvalidRequest(
                    "No folder is named.", cure="Write a new folder's name."
                )
            job = self.bench.start(rq.SaveAdapter(name=name, destination=destination.strip()))
            saved = job.result(timeout=SAVE_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return failure_card(explain(error))
        return saved_card(saved)

    def _start(self, request: rq.Request) -> Node:
        try:
            self.bench.start(request)
        except errors.WorkbenchError as error:
            return failure_card(explain(error))
        return NOTHING

    def show(self, snapshot: rs.Snapshot) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session."""
        busy = snapshot.job is not None
        names = [adapter.name for adapter in snapshot.adapters]
        return {
            self.facts: tables.base_facts(snapshot.base),
            self.unload: gr.update(interactive=snapshot.base is not None and not busy),
            self.load: gr.update(interactive=not busy),
            self.note: self._note(snapshot),
            self.adapters: tables.adapter_table(snapshot),
            self.save_name: gr.update(choices=names, **({"value": names[-1]} if names else {})),
        }

    def _note(self, snapshot: rs.Snapshot) -> Node:
        if snapshot.job is not None:
            doing = snapshot.job.text or "this takes a moment"
            return el("p", f"{snapshot.job.title}: {doing}.", cls="aw-quiet")
        for operation in ("load-model", "set-active", "unload-model"):
            failure = self.bench.failure(operation)
            if failure is not None:
                return failure_card(failure)
        return NOTHING


def saved_card(saved: rs.SavedAdapter) -> Node:
    """Say what was written, where, and how it was verified."""
    return el(
        "div",
        el("p", f"{text.plural(saved.tensors, 'tensor')}, {text.size(saved.bytes)}, in:"),
        el("p", saved.path, cls="aw-path"),
        evidence(
            "Verified: read back, the copy answers the same "
            f"(largest difference {text.small(saved.max_difference)})."
        ),
        cls="aw-note good",
    )
