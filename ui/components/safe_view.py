"""Read-only views of the page, described as plain data and drawn in the browser by `safe_view.js`.

A value is a tree of nodes `[tag, attributes, children]`. The script makes elements and sets text as
text, so names with HTML, quotes or `${` are shown unchanged and never parsed. Tags and attributes
outside a short list are ignored. Redrawing changes only what differs: focus, opened details and
scroll positions stay.
"""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

HEAD = f"<script>{Path(__file__).with_suffix('.js').read_text(encoding='utf-8')}</script>"
"""The script for the page's head; Gradio 6.31 would evaluate a view's own script on each draw."""
ON_LOAD = "drawSafely(element, props, trigger, watch);"

Node = list[object]
Child = Node | str | None


def el(tag: str, *children: Child, **attributes: object) -> Node:
    """Describe an element. `cls` is its class; `_` in a name stands for `-`, as in `aria_label`."""
    named = {
        ("class" if name == "cls" else name.replace("_", "-")): value
        for name, value in attributes.items()
        if value is not None and value is not False
    }
    return [tag, named, [child for child in children if child is not None]]


def button(label: str, act: str, arg: str = "", *, kind: str = "", **attributes: object) -> Node:
    """Describe a button that reports `act` and `arg` to the view's click handler."""
    return el(
        "button", label, cls=f"aw-button {kind}".strip(), data_act=act, data_arg=arg, **attributes
    )


def slider(
    act: str, arg: str, value: float, *, low: float, high: float, step: float, label: str
) -> Node:
    """Describe a slider that reports `act`, `arg` and its value when it is released."""
    return el(
        "span",
        el(
            "input", type="range", min=low, max=high, step=step, value=value, aria_label=label,
            data_act=act, data_arg=arg,
        ),
        el("output", f"{value:.2f}", cls="aw-figure"),
        cls="aw-slider",
    )  # fmt: skip


def chip(name: str, colour: str, note: str = "") -> Node:
    """Describe a name with a dot in its colour; the name is always shown as text too."""
    return el(
        "span",
        el("span", cls="aw-dot", colour=colour, aria_hidden="true"),
        name,
        el("span", note, cls="aw-quiet") if note else None,
        cls="aw-chip",
    )


def facts(pairs: Sequence[tuple[str, Child]]) -> Node:
    """Describe a list of names and values."""
    rows = [el("div", el("dt", name), el("dd", value)) for name, value in pairs]
    return el("dl", *rows, cls="aw-facts")


def safe_view(value: Node, *, label: str, **options: object) -> gr.HTML:
    """Make the component that draws a tree; its clicks carry `act` and `arg`."""
    classes = ["aw-view", *_as_list(options.pop("elem_classes", []))]
    return gr.HTML(
        value,
        html_template="<div class='aw-mount'></div>",
        js_on_load=ON_LOAD,
        apply_default_css=False,
        label=label,
        elem_classes=classes,
        **options,
    )


def clicked(event: gr.EventData) -> tuple[str, str]:
    """Return what was clicked: the act and its argument, both plain text."""
    data = event._data if isinstance(event._data, dict) else {}
    return str(data.get("act", "")), str(data.get("arg", ""))


def slid(event: gr.EventData) -> float | None:
    """Return the value of a released slider, or None if something else was clicked."""
    data = event._data if isinstance(event._data, dict) else {}
    try:
        return float(data["value"])
    except (KeyError, TypeError, ValueError):
        return None


def _as_list(value: object) -> list[str]:
    return [value] if isinstance(value, str) else list(value)  # type: ignore[call-overload]
