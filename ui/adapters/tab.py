"""The Load tab: the base model and its facts, and the library of adapters."""

from pathlib import Path
from typing import Any

import gradio as gr

from backend import PACKAGED_MODELS, errors
from backend import requests as rq
from backend import results as rs
from ui.adapters import adapter_detail, base_facts
from ui.adapters.adapter_panel import AddPanel, DetailPanel
from ui.adapters.adapter_table import adapter_table
from ui.adapters.quantization_table import QuantizationPicker
from ui.components import units
from ui.components.blockers import engaged, held, under_way
from ui.components.event_options import QUIET
from ui.components.feedback import explain, failure_card
from ui.components.forms import Form
from ui.components.safe_view import Node, clicked, el, safe_view, slid
from ui.components.service_handle import ServiceHandle

BUNDLED_PICK = ("Starter (bundled)", "starter")
HUB_PICKS = [
    ("SmolLM2 135M Instruct (Hub)", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ("Qwen2.5 0.5B Instruct (Hub)", "Qwen/Qwen2.5-0.5B-Instruct"),
]
NOTHING: Node = el("div")


class LoadTab:
    """Builds the tab and handles its events."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.form = Form(rq.LoadModel)
        with gr.Row(elem_classes="aw-split"):
            with gr.Column(scale=5, min_width=300, elem_classes="aw-column"):
                self._build_source()
            with gr.Column(scale=6, min_width=300, elem_classes="aw-column"):
                gr.Markdown("## Loaded base model", elem_classes="aw-head")
                self.facts = safe_view(base_facts.base_facts(None), label="Facts about the base")
                self.unload = gr.Button(
                    "Unload", size="sm", interactive=False, elem_classes="aw-auto"
                )
        gr.Markdown("## Adapters", elem_classes="aw-head")
        self.chosen = gr.State("")
        self.adapters = safe_view(NOTHING, label="Adapters", elem_id="adapters")
        self.adapter_note = safe_view(NOTHING, label="Adapters: messages")
        self.detail = DetailPanel(handle)
        self.add = AddPanel(handle)

    def _build_source(self) -> None:
        demo = self.handle.service.settings.demo
        offline = offline_picks(self.handle.service.settings.models_dir)
        picks = [*offline, *HUB_PICKS]
        gr.Markdown("## Base model", elem_classes="aw-head")
        self.form.add(
            "source",
            choices=offline if demo else picks,
            allow_custom_value=not demo,
            elem_id="load-source",
            elem_classes="aw-plain",
        )
        self.handle.keep_for_owner(
            self.form.components["source"], choices=picks, allow_custom_value=True
        )
        self.form.add("precision")
        self.form.add("quantization", elem_id="load-quantization")
        with gr.Accordion("Advanced", open=False), gr.Row(elem_classes="aw-fields"):
            self.form.add("device", min_width=150)
            self.form.add("revision", min_width=150)
            self.form.add("double_quant", min_width=150)
            self.form.add("compute_dtype", min_width=150)
            self.form.add("chat_template", min_width=150)
        self.load = gr.Button("Load starter", variant="primary", elem_id="load-go")
        self.note = safe_view(NOTHING, label="Loading")
        self.quantizations = QuantizationPicker(self.handle, self.form)

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the page is redrawn."""
        source = self.form.components["source"]
        source.change(self.name_button, source, self.load, **QUIET)
        self.quantizations.connect()
        picked = self.adapters.click(self.pick, None, self.chosen, **QUIET)
        picked.then(
            self.detail.show,
            [self.chosen, self.detail.opened],
            self.detail.shown,
            trigger_mode="always_last",  # the last click wins
            **QUIET,
        )
        return [
            self.load.click(
                self.load_base, inputs_kwargs=self.form.inputs, outputs=self.note, **QUIET
            ),
            self.unload.click(self.unload_base, None, self.note, **QUIET),
            self.adapters.click(self.switch, None, self.adapter_note, **QUIET),
            picked,
            *self.detail.connect(self.chosen),
            *self.add.connect(),
        ]

    @property
    def restored(self) -> list[Any]:
        """The components that show the loaded base when a page opens."""
        names = ("source", "quantization", "double_quant", "chat_template")
        return [self.form.components[name] for name in names]

    def restore(self) -> dict[Any, Any]:
        """Fill the form of a new page with the loaded base."""
        base = self.handle.service.snapshot().base
        if base is None:
            return {}
        shown = (base.source, base.quantization, base.double_quant, base.given_template)
        return dict(zip(self.restored, shown, strict=True))

    @property
    def watched(self) -> dict[str, Any]:
        """This browser tab's own inputs of `show`: the selected adapter."""
        return {"chosen": self.chosen}

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` draws."""
        return [
            self.facts, self.unload, self.load, self.note, self.quantizations.key,
            self.adapters, self.adapter_note, *self.detail.changing, self.detail.panel,
            self.detail.head,
        ]  # fmt: skip

    def name_button(self, source: str) -> Any:
        """Return the label of the button: what it will load."""
        name = units.source_name(source) if source else "nothing"
        return gr.update(value=f"Load {units.shorten(name, 40)}")

    def load_base(self, **values: Any) -> Node:
        """Start loading the base; returns at once."""
        if values["quantization"] not in (
            "nf4",
            "fp4",
        ):  # hidden fields may keep values of another choice
            fields = rq.LoadModel.model_fields
            values |= {name: fields[name].default for name in ("double_quant", "compute_dtype")}
        try:
            self.handle.start(rq.LoadModel(**self.form.read(values)))
        except errors.WorkbenchError as error:
            return failure_card(explain(error))
        return NOTHING

    def unload_base(self) -> Node:
        """Unload the base."""
        return self._start(rq.UnloadModel())

    def pick(self, event: gr.EventData) -> Any:
        """Select the adapter whose row was clicked."""
        act, adapter_id = clicked(event)
        return adapter_id if act == "pick" else gr.skip()

    def switch(self, event: gr.EventData) -> Any:
        """Turn adapters on or off, change a strength, or undo a deletion."""
        act, name = clicked(event)
        if act == "restore":
            return self._start(rq.RestoreAdapter(name=name))
        if act == "delete-damaged":
            return self._delete_damaged(name)
        wanted = _wanted(act, name, slid(event), self.handle.service.snapshot().active)
        return gr.skip() if wanted is None else self._start(rq.SetActive(adapters=wanted))

    def _delete_damaged(self, adapter_id: str) -> Node:
        try:
            self.handle.service.delete_damaged(adapter_id)
        except errors.WorkbenchError as error:
            return failure_card(explain(error))
        return NOTHING

    def _start(self, request: rq.Request) -> Node:
        try:
            self.handle.start(request)
        except errors.WorkbenchError as error:
            return failure_card(explain(error))
        return NOTHING

    def show(self, snapshot: rs.Snapshot, chosen: str) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session."""
        busy = snapshot.job is not None or snapshot.slot is not None
        picked = next((info for info in snapshot.adapters if info.id == chosen), None)
        return {
            self.facts: base_facts.base_facts(snapshot.base),
            self.unload: gr.update(interactive=snapshot.base is not None and not busy),
            self.load: gr.update(interactive=not busy),
            self.note: self._note(snapshot),
            self.quantizations.key: self.quantizations.key_for(snapshot),
            self.adapters: adapter_table(snapshot, chosen),
            self.adapter_note: self._adapter_note(snapshot),
            **dict.fromkeys(self.detail.changing, gr.update(interactive=not engaged(snapshot))),
            self.detail.panel: gr.update(visible=picked is not None),
            self.detail.head: adapter_detail.title(picked) if picked else NOTHING,
        }

    def _note(self, snapshot: rs.Snapshot) -> Node:
        if snapshot.job is not None and snapshot.job.run_id is not None:
            return el("p", f"{under_way(snapshot.job)}.", cls="aw-quiet")
        if snapshot.job is not None:
            doing = snapshot.job.text or "this takes a moment"
            return el("p", f"{snapshot.job.title}: {doing}.", cls="aw-quiet")
        return held(snapshot) or self._failure("load-model", "unload-model") or NOTHING

    def _adapter_note(self, snapshot: rs.Snapshot) -> Node:
        if snapshot.adapters and (obstacle := engaged(snapshot)):
            return el("p", f"{obstacle}. Adapters cannot be changed until then.", cls="aw-quiet")
        return self._failure("set-active", "restore-adapter") or self._restored(snapshot) or NOTHING

    def _restored(self, snapshot: rs.Snapshot) -> Node | None:
        """Return the name of a restored adapter, until the next action on an adapter."""
        restored, switched = self.handle.last("restore-adapter"), self.handle.last("set-active")
        done: rs.Renamed | None = self.handle.outcome("restore-adapter")
        if restored is None or done is None or (switched and switched.id > restored.id):
            return None
        name = done.adapter.name
        if name not in {info.name for info in snapshot.adapters} - dict(snapshot.active).keys():
            return None  # deleted again, renamed, or on
        asked = getattr(restored.request, "name", name)
        return el("p", _back(asked, name), cls="aw-quiet")

    def _failure(self, *operations: str) -> Node | None:
        for operation in operations:
            failure = self.handle.failure(operation)
            if failure is not None:
                return failure_card(failure)
        return None


def offline_picks(models_dir: Path) -> list[tuple[str, str]]:
    """Return the bases that need no internet, each with its label: bundled, or from a package."""
    here = [model for model in PACKAGED_MODELS.values() if model.is_here(models_dir)]
    return [BUNDLED_PICK, *((f"{each.title}: {each.summary}", each.name) for each in here)]


def _back(asked: str, name: str) -> str:
    """Say that a deleted adapter was restored; it is always off afterwards."""
    if name.casefold() == asked.casefold():
        return f"{name} is restored, and off."
    return f"{asked} is restored as {name}, because another adapter has its name now. It is off."


def _wanted(
    act: str, name: str, strength: float | None, active: list[tuple[str, float]]
) -> list[tuple[str, float]] | None:
    """Return the active set that a click requests, or None if it requests none."""
    if act == "alone":
        return []
    if act == "on":
        return [*active, (name, 1.0)]
    if act == "off":
        return [(each, s) for each, s in active if each != name]
    if act == "strength" and strength is not None:
        return [(each, strength if each == name else s) for each, s in active]
    return None
