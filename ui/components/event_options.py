"""How the page listens: what every quiet event of it is wired with."""

from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    # Gradio 6.31 shows the state of a call on every output it ever had, hidden or not: its browser
    # code searches the whole tree once for each, some hundred times for every call.
    "show_progress_on": [],
    "concurrency_limit": None,
    "api_visibility": "private",
}
"""The page says itself what goes on, serves many at once, and is not part of the HTTP API."""

AT_ONCE: dict[str, Any] = {**QUIET, "queue": False}
"""For what only draws: its answer comes with the request, where the queue takes three."""


def hidden_key() -> gr.Textbox:
    """Make a value that nobody sees and whose change sets something off.

    Not a `gr.State`: of that the browser holds no value, so each first answer "changes" it.
    """
    return gr.Textbox("", visible=False, show_label=False)
