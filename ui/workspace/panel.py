"""The workspace panel of the Runs tab: export, import, and problem reports.

One task runs at a time, in its own thread. All browser tabs show it, also after a reload.
"""

import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from backend import errors
from backend import results as rs
from ui.components import units
from ui.components.event_options import QUIET
from ui.components.feedback import explain, failure_card, refuse
from ui.components.safe_view import Node, clicked, el, safe_view
from ui.components.service_handle import ServiceHandle
from ui.workspace.cards import exported_card, going_card, imported_card, reported_card

NOTHING: Node = el("div")
DRAWN_EVERY_S = 0.5
Progress = Callable[[str, float], None]
ABOUT = (
    "Moves adapters, runs, notes, the queue and the session to another machine, as one zip. Data, "
    "logs, models and passwords are not included."
)

REPORTING = (
    "If something goes wrong: writes versions, settings and the end of the logs to a zip, without "
    "data, names, paths or secrets. Nothing is sent."
)


class WorkspacePanel:
    """Starts exports, imports and reports, and shows the progress or result of the last one."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._card = NOTHING
        self._file: Path | None = None
        """The file that the last task wrote, if it can be downloaded."""
        hidden = handle.service.settings.demo
        with gr.Accordion(
            "Workspace", open=False, visible=not hidden, elem_id="workspace"
        ) as self.fold:
            self._build()
        handle.keep_for_owner(self.fold, visible=True)

    def _build(self) -> None:
        gr.Markdown(ABOUT, elem_classes="aw-help")
        self.checkpoints = gr.Checkbox(
            label="With checkpoints",
            info="Needed to resume stopped runs and to extend finished ones. "
            "Makes the zip several times larger.",
            elem_id="workspace-checkpoints",
        )
        self.export = gr.Button(
            "Export workspace", size="sm", elem_classes="aw-auto", elem_id="workspace-export"
        )
        self.source = gr.Textbox(
            label="Zip from another machine",
            info="Nothing here is replaced: if a name is taken, the import gets a new name.",
            placeholder="the zip's path on this machine",
            max_lines=1,
            elem_id="workspace-source",
        )
        with gr.Row(elem_classes="aw-buttons"):
            self.bring = gr.Button("Import", size="sm", elem_id="workspace-import")
            limit = units.size(self.handle.service.settings.max_upload_bytes)
            self.upload = gr.UploadButton(
                f"Upload and import (up to {limit})",
                size="sm",
                file_types=[".zip"],
                elem_id="workspace-upload",
            )
        gr.Markdown(REPORTING, elem_classes="aw-help")
        self.report = gr.Button(
            "Report a problem", size="sm", elem_classes="aw-auto", elem_id="workspace-report"
        )
        self.state = safe_view(NOTHING, label="The workspace", elem_id="workspace-state")
        self.download = gr.DownloadButton(
            "Download", size="sm", visible=False, elem_classes="aw-auto", elem_id="workspace-file"
        )

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` draws."""
        return [self.state, self.download]

    def connect(self) -> list[Any]:
        """Wire the panel; returns the events after which the page is redrawn."""
        return [
            self.export.click(self.export_workspace, self.checkpoints, None, **QUIET),
            self.upload.upload(self.import_workspace, self.upload, None, **QUIET),
            self.bring.click(self.import_workspace, self.source, None, **QUIET),
            self.source.submit(self.import_workspace, self.source, None, **QUIET),
            self.report.click(self.report_problem, None, None, **QUIET),
            self.state.click(self.stop, None, None, **QUIET),
        ]

    # -- acting ----------------------------------------------------------------------------------

    def export_workspace(self, checkpoints: bool) -> None:
        """Write the workspace as a zip."""
        service, caller, target = (
            self.handle.service,
            self.handle.caller,
            self._new_file("workspace"),
        )

        def work(progress: Progress) -> Node:
            exported = service.export_workspace(
                target, checkpoints=checkpoints, caller=caller, progress=progress
            )
            self._offer(exported.path, exported.bytes)
            return exported_card(exported)

        self._begin("Exporting.", work)

    def import_workspace(self, source: str) -> None:
        """Import a zip from another machine."""
        service, caller = self.handle.service, self.handle.caller
        if not (source or "").strip():
            self._show(el("p", "Enter the path of an exported zip first.", cls="aw-quiet"))
            return

        def work(progress: Progress) -> Node:
            path = Path(source.strip()).expanduser()
            came: rs.ImportedWorkspace = service.import_workspace(
                path, caller=caller, progress=progress
            )
            return imported_card(came)

        self._begin("Importing.", work)

    def report_problem(self) -> None:
        """Write versions, settings and log lines as a zip."""
        service, caller, target = self.handle.service, self.handle.caller, self._new_file("problem")

        def work(progress: Progress) -> Node:
            report = service.report_problem(target, caller=caller)
            self._offer(report.path, report.bytes)
            return reported_card(report)

        self._begin("Writing the report.", work)

    def stop(self, event: gr.EventData) -> None:
        """Stop the running task and undo it."""
        if clicked(event)[0] == "stop" and self._thread is not None and self._thread.is_alive():
            self._stop.set()
            self._show(going_card("Stopping.", "Changes so far are being undone"))

    def _new_file(self, stem: str) -> Path:
        # Unguessable: anyone who knows the name can download the file, even guests of a demo.
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}"
        return self.handle.service.settings.exports_dir / f"{stem}-{stamp}.zip"

    # -- the running task ------------------------------------------------------------------------

    def _begin(self, title: str, work: Callable[[Progress], Node]) -> None:
        """Start the task in a thread, unless one is running."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                busy = errors.Busy(
                    "An export or import is still running.", cure="Wait for it or stop it."
                )
                refuse("Not started", busy)
                return
            self._stop.clear()
            self._file = None
            self._show(going_card(title, "Starting"))
            self._thread = threading.Thread(
                target=self._do, args=(title, work), name="workspace", daemon=True
            )
            self._thread.start()

    def _do(self, title: str, work: Callable[[Progress], Node]) -> None:
        shown_at = 0.0

        def progress(doing: str, done: float) -> None:
            nonlocal shown_at
            if self._stop.is_set():
                raise errors.Stopped("Stopped. Nothing was changed.")
            if time.monotonic() - shown_at > DRAWN_EVERY_S:
                shown_at = time.monotonic()
                self._show(going_card(title, doing, done))

        try:
            card = work(progress)
        except Exception as error:  # any error: the page must not show the task as running
            card = failure_card(explain(error))
        self._show(card)

    def _offer(self, path: str, size: int) -> None:
        """Offer a file for download unless it is too large for a browser and Gradio's cache."""
        if size <= self.handle.service.settings.max_upload_bytes:
            self._file = Path(path)

    def _show(self, card: Node) -> None:
        self._card = card
        self.handle.version += 1

    # -- drawing ---------------------------------------------------------------------------------

    def show(self) -> dict[Any, Any]:
        """Draw the progress or result of the last task; hidden from guests of a demo."""
        if self.handle.demo:
            return {self.state: NOTHING, self.download: gr.update(visible=False)}
        file = self._file
        if file is None or not file.is_file():
            return {self.state: self._card, self.download: gr.update(visible=False)}
        offered = gr.update(value=str(file), label=f"Download {file.name}", visible=True)
        return {self.state: self._card, self.download: offered}
