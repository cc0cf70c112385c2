"""Fields of the Train form that follow the loaded base: what to start from, and its experts."""

from typing import Any

import gradio as gr

from backend import results as rs
from ui.components import session_facts
from ui.components.forms import Form

START, EXPERTS = "start_from", "adapter.experts"
NEW = ("a new adapter", "")
FIRST: dict[str, dict[str, Any]] = {
    START: {"choices": [NEW], "value": ""},
    EXPERTS: {"visible": False},
}
"""How these fields are built, before a base is known."""


def drawn(form: Form) -> list[Any]:
    """Return the components that `show` draws."""
    return [form.components[START], form.components[EXPERTS]]


def show(form: Form, snapshot: rs.Snapshot) -> dict[Any, Any]:
    """Offer the adapters that fit the base, and its experts where it has some."""
    fitting = [NEW, *((a.name, a.name) for a in session_facts.fitting(snapshot))]
    mixture = snapshot.base is not None and snapshot.base.has_experts
    off = {} if mixture else {"value": False}  # a hidden field must not ask for experts
    return {
        form.components[START]: gr.update(choices=fitting),
        form.components[EXPERTS]: gr.update(visible=mixture, **off),
    }
