"""The Merge tab: adapters with strengths, the target folder, the needs, and the result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.components import units
from ui.components.blockers import held, no_base, wait
from ui.components.clamped_slider import KeptSlider
from ui.components.event_options import QUIET, hidden_key
from ui.components.feedback import explain, failure_card, mend_button, refuse
from ui.components.forms import field_of
from ui.components.safe_view import Child, Node, clicked, el, safe_view
from ui.components.service_handle import ServiceHandle
from ui.components.session_facts import fitting
from ui.merge.merge_cards import just_merged, merge_label, needs_card, problem, running, stage, warn

MOST = 6
"""Most adapters in one merge on the page; the HTTP API and Python allow twenty."""
PRECISIONS = [
    ("as the base is loaded", "as-base"),
    ("fp32: exact, 4 bytes per parameter", "fp32"),
    ("bf16: half the size, slightly rounded", "bf16"),
    ("fp16: half the size, for older GPUs", "fp16"),
]


class MergeTab:
    """Builds the tab and handles its events."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.key = hidden_key()
        self.strengths = gr.State({})
        self.followed = gr.State([])
        self.suggested = gr.State("")
        with gr.Row(elem_classes="aw-split"):
            with gr.Column(scale=5, min_width=300, elem_classes="aw-column"):
                self._build_adapters()
                self._build_target()
            with gr.Column(scale=6, min_width=300, elem_classes="aw-column"):
                gr.Markdown("## 3 Before you start", elem_classes="aw-head")
                self.card = safe_view(
                    el("div"), label="What the merge takes", elem_classes="aw-card"
                )
                self.go = gr.Button(
                    "Merge", variant="primary", interactive=False, elem_id="merge-go"
                )
                gr.Markdown("## 4 The merged model", elem_classes="aw-head")
                self.stage = safe_view(
                    stage(None, None), label="The merged model", elem_id="merge-stage"
                )

    def _build_adapters(self) -> None:
        gr.Markdown("## 1 Adapters", elem_classes="aw-head")
        self.names = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            max_choices=MOST,
            label="Adapters",
            info="Their changes are added to the base's weights, in this order.",
            elem_id="merge-adapters",
        )
        self.sliders = [
            KeptSlider(-2, 2, value=1, step=0.05, label="Strength", visible=False)
            for _ in range(MOST)
        ]

    def _build_target(self) -> None:
        gr.Markdown("## 2 The new model", elem_classes="aw-head")
        self.folder = gr.Textbox(
            label="Folder",
            info="A new or empty folder. A name without slashes is created in the workspace.",
            max_lines=1,
            elem_id="merge-folder",
        )
        precision = field_of(rq.Merge, "precision")
        self.precision = gr.Dropdown(
            PRECISIONS,
            value="as-base",
            label="Precision",
            info=precision.description,
            elem_id="merge-precision",
        )
        with gr.Accordion("Advanced", open=False):
            self.largest = gr.Number(
                5,
                label="Largest file (GB)",
                info="The weights are split into files of at most this size.",
                minimum=0.001,
                maximum=50,
            )

    # -- wiring ----------------------------------------------------------------------------------

    @property
    def inputs(self) -> dict[str, Any]:
        """The components that define what would be merged."""
        return {
            "names": self.names,
            "strengths": self.strengths,
            "folder": self.folder,
            "precision": self.precision,
            "largest": self.largest,
        }

    @property
    def watched(self) -> dict[str, Any]:
        """This browser tab's own inputs of `show`."""
        return {}

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` draws."""
        return [self.key, self.stage]

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the page is redrawn."""
        chosen = [self.names, self.strengths, self.folder, self.suggested, self.followed]
        laid = [*self.sliders, self.folder, self.suggested]
        gr.on(  # one event for both: two at the same time would undo each other's choice
            [self.key.change, self.names.change],
            self.follow,
            chosen,
            [self.names, self.strengths, self.followed, *laid],
            trigger_mode="always_last",
            **QUIET,
        )
        for slider in self.sliders:
            slider.input(
                self.remember,
                [self.names, self.strengths, *self.sliders],
                self.strengths,
                trigger_mode="always_last",
                **QUIET,
            )
        gr.on(
            [each.change for each in (*self.inputs.values(), self.key)],
            self.check,
            inputs_kwargs=self.inputs,
            outputs=[self.card, self.go],
            trigger_mode="always_last",
            **QUIET,
        )
        renamed = self.card.click(self.rename, None, self.folder, **QUIET)
        started = self.go.click(
            self.start, inputs_kwargs=self.inputs, outputs=[self.card, self.go], **QUIET
        )
        return [renamed, started, self.stage.click(self.act, None, None, **QUIET)]

    # -- what is chosen --------------------------------------------------------------------------

    def follow(
        self,
        names: list[str],
        strengths: dict[str, float],
        folder: str,
        suggested: str,
        followed: rq.Variant,
    ) -> tuple[Any, ...]:
        """Follow the active adapters until the user chooses; drop adapters that are gone."""
        snapshot = self.handle.service.snapshot()
        there = [adapter.name for adapter in fitting(snapshot)]
        wanted = [name for name in names if name in there]
        if [(name, strengths.get(name, 1.0)) for name in names] == followed:
            followed = [(n, s) for n, s in snapshot.active if n in there][:MOST]
            wanted = [name for name, _ in followed]
            strengths = {**strengths, **dict(followed)}
        # sending the value back would undo a choice made in the meantime
        moved = {} if wanted == names else {"value": wanted}
        chosen = gr.update(choices=there, **moved)
        return chosen, strengths, followed, *self.lay_out(wanted, strengths, folder, suggested)

    def lay_out(
        self, names: list[str], strengths: dict[str, float], folder: str, suggested: str
    ) -> tuple[Any, ...]:
        """Show one slider per adapter; suggest a folder until the user writes one."""
        known = {adapter.name: adapter for adapter in self.handle.service.snapshot().adapters}
        sliders = [
            _slider(known[name], strengths.get(name, 1.0))
            if (name := names[i] if i < len(names) else "") in known
            else gr.update(visible=False)
            for i in range(MOST)
        ]
        if folder and folder != suggested:
            return *sliders, gr.skip(), suggested
        suggested = self._free_folder(names)
        return *sliders, suggested, suggested

    def remember(
        self, names: list[str], strengths: dict[str, float], *values: float
    ) -> dict[str, float]:
        """Store each adapter's strength by name, so that it survives changes of the list."""
        return {**strengths, **dict(zip(names, values, strict=False))}

    def request(
        self,
        names: list[str],
        strengths: dict[str, float],
        folder: str,
        precision: str,
        largest: float | None,
    ) -> rq.Merge:
        """Build the request that the form describes; raises InvalidRequest."""
        if not names:
            raise errors.InvalidRequest("No adapter is chosen.", cure="Choose at least one.")
        if not (folder or "").strip():
            raise errors.InvalidRequest(
                "No folder is given.", cure="Enter the name of a new folder."
            )
        return rq.Merge(
            variant=[(name, strengths.get(name, 1.0)) for name in names],
            destination=self._whole(folder),
            precision=precision,
            shard_bytes=round((largest or 5) * 1e9),
        )

    # -- before the start ------------------------------------------------------------------------

    def check(self, **values: Any) -> tuple[Node, Any]:
        """Show what the merge would need, or why it cannot start and a fix."""
        snapshot = self.handle.service.snapshot()
        names = values["names"] or []
        label = merge_label(names, snapshot)
        blocked = self._blocked(snapshot, names)
        if blocked is not None:
            return blocked, gr.update(value=label, interactive=False)
        try:
            needs = self.handle.service.merge_needs(self.request(**values), caller="page")
        except errors.WorkbenchError as error:
            mend = self._other_folder(names, values["folder"], error)
            there = self._just_merged(values["folder"])
            card = just_merged(mend) if there and mend else problem(error, mend)
            return card, gr.update(value=label, interactive=False)
        ready = needs.disk_bytes <= needs.disk_free_bytes
        return needs_card(needs, snapshot.base), gr.update(value=label, interactive=ready)

    def rename(self, event: gr.EventData) -> Any:
        """Use the free folder that the card offers."""
        act, arg = clicked(event)
        return arg if act == "folder" else gr.skip()

    def start(self, **values: Any) -> tuple[Any, Any]:
        """Start the merge; returns at once."""
        try:
            self.handle.start(self.request(**values))
        except errors.WorkbenchError as error:
            return failure_card(explain(error)), gr.skip()
        return gr.skip(), gr.update(interactive=False)

    def act(self, event: gr.EventData) -> None:
        """Handle the buttons of the result: cancel the merge, or load the merged model."""
        act, arg = clicked(event)
        if act == "cancel":
            self.handle.service.stop_side(int(arg))
        if act == "load":
            try:
                self.handle.start(rq.LoadModel(source=arg))
            except errors.WorkbenchError as error:
                refuse("Cannot load it now", error)

    def _blocked(self, snapshot: rs.Snapshot, names: Sequence[str]) -> Node | None:
        if self.handle.demo:
            return wait(
                "This shared demo cannot write to folders. Duplicate the Space or run the app on "
                "your own machine to merge."
            )
        if obstacle := no_base(snapshot) or held(snapshot):
            return obstacle
        if running(snapshot) is not None:
            return wait(
                "A merge is in progress; it can be stopped below. Training and chat still work."
            )
        if not fitting(snapshot):
            sentence = "No adapter was made for the loaded base yet."
            return warn(sentence, mend_button("Train the first one", "go", "train"))
        return None if names else wait("Choose one or more adapters to merge.")

    def _free_folder(self, names: Sequence[str]) -> str:
        """Return a folder under the workspace that does not exist yet."""
        base = self.handle.service.snapshot().base
        if base is None or not names:
            return ""
        stem = "-".join(part.replace(" ", "_") for part in (base.name.rsplit("/")[-1], *names))
        root = self.handle.service.settings.merged_dir.expanduser().absolute()
        folder, number = root / stem[:80], 2
        while folder.exists():
            folder, number = root / f"{stem[:80]}-{number}", number + 1
        return str(folder)

    def _whole(self, folder: str) -> str:
        return units.whole_path(folder, self.handle.service.settings.merged_dir)

    def _just_merged(self, folder: str) -> bool:
        """Return whether the last merge wrote the folder in the form."""
        merged: rs.Merged | None = self.handle.outcome("merge")
        return merged is not None and Path(merged.path) == Path(self._whole(folder or ""))

    def _other_folder(
        self, names: Sequence[str], folder: str, error: errors.WorkbenchError
    ) -> Child:
        if "folder" not in error.what or (folder and not Path(self._whole(folder)).exists()):
            return None
        free = self._free_folder(names)
        return mend_button(f"Write to {Path(free).name}", "folder", free) if free else None

    # -- drawing ---------------------------------------------------------------------------------

    def show(self, snapshot: rs.Snapshot) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session."""
        job = running(snapshot)
        failure = self.handle.failure("merge")
        shown = failure_card(failure) if failure and job is None else None
        return {
            self.key: _key(snapshot),
            self.stage: shown or stage(job, self.handle.outcome("merge")),
        }


def _slider(adapter: rs.AdapterInfo, strength: float) -> Any:
    fixed = adapter.strength == "on-off" or adapter.method == "DoRA"
    return gr.update(
        visible=True,
        label=f"Strength of {adapter.name}",
        info=f"{adapter.method} only works at strength 1." if fixed else None,
        value=1.0 if fixed else strength,
        interactive=not fixed,
    )


def _key(snapshot: rs.Snapshot) -> str:
    """Return a key that changes whenever the possible merges may have changed."""
    base = snapshot.base.loaded_as if snapshot.base else snapshot.phase
    slot = "held" if snapshot.slot is not None else ""
    names = ",".join(adapter.name for adapter in fitting(snapshot))
    active = ",".join(f"{name}*{strength}" for name, strength in snapshot.active)
    job = running(snapshot)
    return f"{base}|{names}|{active}|{job.id if job else ''}|{slot}"
