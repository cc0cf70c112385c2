"""Options that the page's event listeners share."""

from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    # Gradio 6.31 updates the status of a call on every output, hidden or not: its browser code
    # searches the whole component tree for each of them, about a hundred times per call.
    "show_progress_on": [],
    "concurrency_limit": None,
    "api_visibility": "private",
}
"""The page shows progress itself, handles many calls at once, and adds nothing to the API."""

AT_ONCE: dict[str, Any] = {**QUIET, "queue": False}
"""For handlers that only draw: one HTTP request instead of the queue's three."""


def hidden_key() -> gr.Textbox:
    """Make an invisible value whose change triggers an event.

    A `gr.State` does not work here: the browser has no value of it, so the first output always
    counts as a change.
    """
    return gr.Textbox("", visible=False, show_label=False)
