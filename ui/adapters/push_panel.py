"""Uploading the selected adapter to the Hugging Face Hub."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.components import units
from ui.components.feedback import evidence, explain, failure_card
from ui.components.forms import Form
from ui.components.safe_view import Node, el, safe_view
from ui.components.service_handle import ServiceHandle

WAIT_SECONDS = 3600.0
FIELDS = ("repo_id", "private", "replace")
NOTHING: Node = el("div")


class PushPanel:
    """The repository, its visibility, and the result of the upload."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.form = Form(rq.PushAdapter)
        hidden = handle.service.settings.demo
        folded = gr.Accordion(
            "Upload to the Hugging Face Hub", open=False, visible=not hidden, elem_id="push"
        )
        handle.keep_for_owner(folded, visible=True)
        with folded:
            self.fields = [self.form.add(name, elem_id=f"push-{name}") for name in FIELDS]
            self.send = gr.Button("Upload", size="sm", elem_id="push-go", elem_classes="aw-auto")
            self.done = safe_view(NOTHING, label="The upload", elem_id="push-done")

    def push(self, chosen: str, *values: Any) -> Iterator[tuple[Node, Any]]:
        """Upload the adapter in the background; then show its address and how it was verified."""
        yield (
            el("p", "Uploading. The model stays available.", cls="aw-quiet"),
            _button(sending=True),
        )
        try:
            name = self.handle.require_adapter(chosen).name
            said = self.form.read(dict(zip(FIELDS, values, strict=True)))
            job = self.handle.start(rq.PushAdapter(name=name, **said))
            shown = pushed_card(job.result(timeout=WAIT_SECONDS))
        except (errors.WorkbenchError, TimeoutError) as error:
            shown = failure_card(explain(error), title="The upload failed")
        yield shown, _button(sending=False)


def pushed_card(pushed: rs.PushedAdapter) -> Node:
    """Show the address of the upload, and how it was verified."""
    listed = f"{units.plural(len(pushed.files), 'file')}, {units.size(pushed.bytes)}, at:"
    return el(
        "div",
        el("p", listed),
        el("p", pushed.url, cls="aw-path"),
        evidence("Verified: every file on the Hub has the same digest as the local file."),
        cls="aw-note good",
    )


def _button(*, sending: bool) -> Any:
    return gr.update(interactive=not sending)
