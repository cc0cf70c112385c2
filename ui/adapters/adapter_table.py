"""The table of adapters: which are on, at what strength, and their state in memory."""

from backend import CHAT_TEMPLATES
from backend import results as rs
from ui.components import data_sets, units
from ui.components.blockers import engaged
from ui.components.safe_view import Child, Node, button, chip, el, slider
from ui.components.session_facts import fits
from ui.components.tables import cell, table

HEADS = ("On", "Name", "Method", "Strength", "In memory", "Made for", "From", "Exact match")
STRENGTHS = (-2.0, 2.0, 0.05)


def adapter_table(snapshot: rs.Snapshot, chosen: str = "") -> Node:
    """List the library with the state of each adapter; `chosen` is the id of the selected row."""
    parts: list[Child] = []
    if snapshot.irregular:
        parts.append(_irregular(snapshot.irregular))
    if snapshot.adapters:
        rows = [_row(snapshot, adapter, adapter.id == chosen) for adapter in snapshot.adapters]
        parts.append(table("Adapters", HEADS, rows))
    else:
        parts.append(_empty())
    if snapshot.deleted:
        parts.append(_deleted(snapshot))
    parts += [_damaged(each) for each in snapshot.damaged]
    return el("div", *parts)


def _empty() -> Node:
    return el(
        "div",
        el("p", "No adapters yet. Train one, or add one below.", cls="aw-quiet"),
        button("Train the first one", "go", "train"),
        cls="aw-empty",
    )


def _irregular(sentence: str) -> Node:
    return el(
        "div",
        el("p", el("strong", "Something is wrong. "), sentence),
        button("Switch all off", "alone"),
        cls="aw-note bad",
        role="alert",
    )


def _deleted(snapshot: rs.Snapshot) -> Node:
    items = [
        el("span", chip(info.name, info.colour, "deleted"), button("Undo", "restore", info.name))
        for info in snapshot.deleted
    ]
    return el("div", *items, cls="aw-deleted")


def _damaged(adapter: rs.DamagedAdapter) -> Node:
    return el(
        "div",
        el("p", el("strong", "An adapter cannot be read. "), f"{adapter.what} {adapter.cure}"),
        el("p", adapter.folder, cls="aw-path"),
        button("Delete it", "delete-damaged", adapter.id),
        cls="aw-note bad",
    )


def _row(snapshot: rs.Snapshot, adapter: rs.AdapterInfo, chosen: bool) -> Node:
    on = next((strength for name, strength in snapshot.active if name == adapter.name), None)
    status = next((each for each in snapshot.status if each.name == adapter.name), None)
    match = adapter.evaluation.exact_match if adapter.evaluation else None
    made_for = adapter.base_name + ("" if fits(adapter, snapshot.base) else " (not loaded)")
    return el(
        "tr",
        cell("On", _switch(snapshot, adapter, on is not None)),
        cell("Name", chip(adapter.name, adapter.colour), cls="aw-name"),
        cell("Method", units.method(adapter.method, adapter.rank, experts=adapter.by_parameter)),
        cell("Strength", _strength(snapshot, adapter, on)),
        cell("In memory", _in_slot(snapshot, adapter) or _on_model(status)),
        cell("Made for", made_for, _other_template(snapshot, adapter)),
        cell("From", _origin(adapter)),
        cell("Exact match", units.percent(match) if match is not None else "-"),
        cls=f"pick{' selected' if chosen else ''}{' on' if on is not None else ''}",
        data_act="pick",
        data_arg=adapter.id,
        tabindex="0",
        aria_selected="true" if chosen else "false",
    )


def _other_template(snapshot: rs.Snapshot, adapter: rs.AdapterInfo) -> Child:
    """Return a note if the adapter was trained with another chat template than the base has."""
    given = CHAT_TEMPLATES.get(adapter.chat_template)
    if given is None or snapshot.base is None or snapshot.base.given_template == given.id:
        return None
    help = f"Trained with the chat template {given.title}: load the base with it (Advanced)"
    return el("span", f", in {given.title}", cls="aw-quiet", title=help)


def _switch(snapshot: rs.Snapshot, adapter: rs.AdapterInfo, on: bool) -> Node:
    obstacle = engaged(snapshot) or None
    if on:
        word, act, kind = "Turn off", "off", "pressed"
    else:
        word, act, kind = "Turn on", "on", ""
        if not fits(adapter, snapshot.base):
            obstacle = f"Made for {adapter.base_name}: load that base first"
    disabled = obstacle is not None
    return button(word, act, adapter.name, kind=kind, disabled=disabled, title=obstacle)


def _strength(snapshot: rs.Snapshot, adapter: rs.AdapterInfo, on: float | None) -> Child:
    if adapter.strength == "on-off":
        return el(
            "span", "1 only", cls="aw-quiet", title=f"{adapter.method} only works at strength 1"
        )
    if on is None:
        return el("span", "off", cls="aw-quiet")
    if obstacle := engaged(snapshot):
        return el("span", f"{on:.2f}", cls="aw-figure", title=obstacle)
    low, high, step = STRENGTHS
    return slider(
        "strength", adapter.name, on, low=low, high=high, step=step,
        label=f"Strength of {adapter.name}",
    )  # fmt: skip


def _in_slot(snapshot: rs.Snapshot, adapter: rs.AdapterInfo) -> Child:
    """Return the state of an adapter in the hot-swap slot; None without a slot."""
    slot = snapshot.slot
    if slot is None:
        return None
    if adapter.name not in slot.adapters:
        return el("span", "not in the slot", cls="aw-quiet")
    return "in the slot" if adapter.name == slot.current else "prepared for the slot"


def _on_model(status: rs.AdapterStatus | None) -> Child:
    if status is None:
        return el("span", "not loaded", cls="aw-quiet")
    state = ("trainable" if status.trainable else "loaded") + (", merged" if status.merged else "")
    help = "Loaded: it can answer and is frozen. Merged: added to the base's own weights"
    return el(
        "span",
        el("span", units.size(status.memory_bytes), cls="aw-figure"),
        " ",
        el("span", state, cls="aw-quiet aw-small"),
        title=help,
    )


def _origin(adapter: rs.AdapterInfo) -> str:
    if adapter.origin == "run":
        return data_sets.title(adapter.data) if adapter.data else "a run"
    return units.shorten(adapter.recipe, 40) or adapter.origin
