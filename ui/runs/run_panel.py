"""The selected run on the Runs tab: curve, facts, note, and actions."""

from pathlib import Path
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.charts.loss_chart import chart_value, loss_chart
from ui.components import units
from ui.components.blockers import engaged
from ui.components.event_options import QUIET
from ui.components.feedback import evidence, explain, failure_card, refuse
from ui.components.forms import Form
from ui.components.safe_view import Node, clicked, el, safe_view
from ui.components.service_handle import ServiceHandle
from ui.runs import run_detail
from ui.train.data_question import ACTS, decide

EXPORT_SECONDS = 600.0
NOTHING: Node = el("div")
EXTENDING = (
    "More epochs over the examples, in the same curve. The learning rate schedule starts again for "
    "them."
)
UNPICKED: Node = el(
    "p", "Click a run above to see its curve and settings.", cls="aw-quiet aw-empty"
)


class RunPanel:
    """Shows the selected run, and handles its buttons."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.deleting = gr.State("")
        self.form = Form(rq.Resume)
        with gr.Row(elem_classes="aw-split aw-one-run"):
            with gr.Column(scale=5, min_width=300, elem_classes="aw-column"):
                self.actions = safe_view(UNPICKED, label="The run", elem_id="run-actions")
                self.facts = safe_view(NOTHING, label="Facts about the run")
            with gr.Column(scale=6, min_width=300, elem_classes="aw-column"):
                self.chart = loss_chart(
                    handle.service, elem_id="runs-chart", empty="The run's curve appears here."
                )
                with gr.Column(visible=False) as self.more:
                    self._build_more()
        self._build_lines()

    def _build_lines(self) -> None:
        self.lines_title = safe_view(NOTHING, label="About the lines below")
        self.lines = gr.Code(
            visible=False, interactive=False, show_label=False, max_lines=24, elem_id="run-lines"
        )

    def _build_more(self) -> None:
        with gr.Row(visible=False, elem_classes="aw-ask") as self.extension:
            self.epochs = self.form.add(
                "extra_epochs",
                value=1,
                info=EXTENDING,
                scale=4,
                min_width=150,
                elem_id="run-extra-epochs",
            )
            self.extend = gr.Button("Extend", scale=1, min_width=90, elem_id="run-extend")
        self.note = gr.Textbox(
            label="Notes",
            info="Saved in the run's folder; the filter above also searches them.",
            lines=2,
            max_lines=12,
            elem_id="run-note",
        )
        self.keep = gr.Button("Save note", size="sm", elem_classes="aw-auto")
        self.kept = safe_view(NOTHING, label="The note")
        demo = self.handle.service.settings.demo
        with gr.Accordion("Export", open=False, visible=not demo) as self.export_fold:
            self.folder = gr.Textbox(
                label="Folder",
                info="A new folder. It gets the request, events, log, adapter and script.",
                max_lines=1,
                elem_id="run-export-folder",
            )
            self.export = gr.Button("Export the run", size="sm", elem_classes="aw-auto")
            self.exported = safe_view(NOTHING, label="The exported run", elem_id="run-exported")
        self.handle.keep_for_owner(self.export_fold, visible=True)

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` draws."""
        return [
            self.actions, self.facts, self.chart, self.more, self.note, self.extension,
            self.epochs, self.extend,
        ]  # fmt: skip

    def connect(self, selected: gr.State) -> list[Any]:
        """Wire the panel; returns the events after which the page is redrawn."""
        lines = [self.lines_title, self.lines]
        selected.change(self.forget, selected, [*lines, self.kept, self.exported, self.folder],
                        **QUIET)  # fmt: skip
        self.actions.click(self.show_lines, None, lines, **QUIET)
        self.export.click(self.export_run, [selected, self.folder], self.exported, **QUIET)
        return [
            self.actions.click(self.act, None, self.deleting, **QUIET),
            self.keep.click(self.keep_note, [selected, self.note], self.kept, **QUIET),
            self.extend.click(self.extend_run, [selected, self.epochs], None, **QUIET),
        ]

    # -- acting ----------------------------------------------------------------------------------

    def act(self, event: gr.EventData) -> Any:
        """Resume a run, or delete it after confirmation."""
        act, run_id = clicked(event)
        if act in ACTS:
            decide(self.handle, act, run_id)
        if act == "delete-now":
            self._delete(run_id)
        if act in ("delete", "delete-now", "keep"):
            return run_id if act == "delete" else ""
        return gr.skip()

    def _delete(self, run_id: str) -> None:
        try:
            self.handle.service.delete_run(run_id)
        except errors.WorkbenchError as error:
            refuse("Not deleted", error)

    def extend_run(self, run_id: str, epochs: float | None) -> None:
        """Extend a finished run by some epochs."""
        try:
            if not epochs:
                raise errors.InvalidRequest("Extend by is empty.", cure="Try 1.")
            self.handle.start(rq.Resume(run_id=run_id, extra_epochs=epochs))
        except errors.WorkbenchError as error:
            refuse("Cannot extend", error)

    def keep_note(self, run_id: str, note: str) -> Node:
        """Save the note in the run's folder."""
        try:
            self.handle.service.annotate(run_id, note or "")
        except errors.WorkbenchError as error:
            return failure_card(explain(error))
        return evidence("Saved in the run's folder.")

    def show_lines(self, event: gr.EventData) -> tuple[Any, Any]:
        """Show the run as commands or as a script."""
        act, run_id = clicked(event)
        if act not in ("command", "script"):
            return gr.skip(), gr.skip()
        try:
            return self._commands(run_id) if act == "command" else self._script(run_id)
        except errors.WorkbenchError as error:
            return failure_card(explain(error)), gr.update(visible=False)

    def _commands(self, run_id: str) -> tuple[Node, Any]:
        said = run_detail.commands(self.handle.service.run_commands(run_id))
        title = "Run these in the app's folder, with its Python."
        return el("p", title, cls="aw-quiet"), gr.update(value=said, language="shell", visible=True)

    def _script(self, run_id: str) -> tuple[Node, Any]:
        said = self.handle.service.run_script(run_id)
        title = (
            "This script repeats the run without this app and prints the same losses. It reads "
            "examples.jsonl in the same folder: Export writes both."
        )
        return el("p", title, cls="aw-quiet"), gr.update(
            value=said, language="python", visible=True
        )

    def export_run(self, run_id: str, folder: str) -> Node:
        """Write the run into a folder."""
        if not (folder or "").strip():
            return el("p", "Enter a folder first.", cls="aw-quiet")
        try:
            whole = units.whole_path(folder, self.handle.service.settings.exports_dir)
            request = rq.ExportRun(run_id=run_id, destination=whole)
            return run_detail.exported(self.handle.start(request).result(timeout=EXPORT_SECONDS))
        except (errors.WorkbenchError, TimeoutError) as error:
            return failure_card(explain(error))

    def forget(self, run_id: str) -> tuple[Any, ...]:
        """Clear what was shown of the previous run, because another one was selected."""
        folder = self.handle.service.settings.exports_dir / run_id
        return NOTHING, gr.update(visible=False), NOTHING, NOTHING, str(folder)

    # -- drawing ---------------------------------------------------------------------------------

    def show(
        self, snapshot: rs.Snapshot, run: rs.RunSummary | None, deleting: str
    ) -> dict[Any, Any]:
        """Draw everything about the selected run."""
        if run is None:
            return {
                self.actions: UNPICKED,
                self.facts: NOTHING,
                self.chart: chart_value(None),
                self.more: gr.update(visible=False),
                self.note: "",
                self.extension: gr.update(visible=False),
                self.extend: gr.update(interactive=False),
            }
        adapter = next((a for a in snapshot.adapters if a.run_id == run.id), None)
        live = run.state in ("queued", "running")
        return {
            self.actions: run_detail.run_actions(run, adapter, deleting=deleting == run.id),
            self.facts: self._facts(run),
            self.chart: chart_value(run.id, run.colour, live, run.step),
            self.more: gr.update(visible=True),
            self.note: run.note,
            self.extension: gr.update(visible=run.state == "finished"),
            **self._extending(snapshot, run),
        }

    def _extending(self, snapshot: rs.Snapshot, run: rs.RunSummary) -> dict[Any, Any]:
        """Enable extending a finished run, or show at the field why it is not possible."""
        reason = run.not_extendable or engaged(snapshot)
        info = f"Not possible: {reason}." if reason else EXTENDING
        return {
            self.epochs: gr.update(info=info),
            self.extend: gr.update(interactive=not reason and snapshot.job is None),
        }

    def _facts(self, run: rs.RunSummary) -> Node:
        try:
            service = self.handle.service
            files = service.runs.get(run.id)
            if run.state == "damaged":
                return run_detail.damaged_facts(run, files.folder, files.latest_checkpoint())
            changes = run_detail.changes_of(service.events(run.id))
            problem = service.runs.events(run.id).problem
            train = files.request.train
            return run_detail.run_facts(run, train, Path(files.log), changes, problem)
        except errors.WorkbenchError:
            return NOTHING
