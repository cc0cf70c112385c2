"""Polling: asks about once a second what is new, draws it, and redraws the tab only if it has to.

A server function answers: a tick of `gr.Timer` costs 35 ms of the page's process even without
changes (Gradio 6.31: queue, event stream), a server function a tenth of that. Its answer contains
the views that each step of a run changes (`live_views.py`). For all other changes the visible tab
is redrawn: Gradio 6.31 rebuilds the component of each output of an event, changed or not.
"""

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from ui.app.live_views import BAR, RUN, LiveViews

BEAT_MS = 900
REST_MS = 1700
"""The shortest time between two redraws: the table of runs changes with each step of a run.

Two beats and the redraw itself stay below two seconds, within which changes should be visible.
"""
HEAL_MS = 20_000
"""The longest time between two redraws: if two arrive out of order, the older one may stay."""
PATIENCE_MS = 6000
"""The longest wait for an answer: the page's process is slow while it draws for many tabs."""
GONE = (
    "The app does not respond. It was closed, or its computer is asleep or not reachable. "
    "The page may be out of date. It reconnects automatically when the app is back."
)
DRAW = "draw_"
HEAD = f"<script>{Path(__file__).with_name('first_look.js').read_text(encoding='utf-8')}</script>"
SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def pulse(live: LiveViews, tabs: Iterable[str]) -> gr.HTML:
    """Make the invisible component with one event per tab: "this tab needs a redraw"."""
    life = uuid.uuid4().hex[:12]

    def news(asked: dict[str, Any]) -> dict[str, Any]:
        # a restarted app counts states from zero, and does not know open pages
        if asked.get("first"):
            return {"life": life, **live.first()}
        shown = asked.get("shown")
        marks = shown if isinstance(shown, dict) else {}
        return {"life": life, **live.news(str(asked.get("tab")), str(asked.get("run")), marks)}

    script = SCRIPT.replace("__BEAT__", str(BEAT_MS)).replace("__REST__", str(REST_MS))
    script = script.replace("__HEAL__", str(HEAL_MS))
    script = script.replace("__DRAWS__", json.dumps({tab: DRAW + tab for tab in tabs}))
    script = (
        script.replace("__RUN__", RUN)
        .replace("__BAR__", BAR)
        .replace("__LIVE__", json.dumps([BAR, RUN]))
    )
    script = script.replace("__PATIENCE__", str(PATIENCE_MS)).replace("__GONE__", GONE)
    return gr.HTML(
        "",
        html_template="<span></span>",
        js_on_load=script,
        server_functions=[news],
        apply_default_css=False,
        elem_id="pulse",
        elem_classes=["aw-view", "aw-pulse"],
        label="Pulse",
    )
