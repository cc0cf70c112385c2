"""Blockers that several tabs show: the reason, and a button that helps."""

from backend import results as rs
from ui.components.feedback import mend_button
from ui.components.safe_view import Node, el

REASON = "The hot-swap slot is using the model: leave the slot first"


ENGAGED: tuple[rs.Phase, ...] = ("training", "paused", "loading", "combining", "swapping")
"""Phases that occupy the model for a while; the others are too short to show."""


def engaged(snapshot: rs.Snapshot) -> str:
    """Return why adapters cannot be changed now; empty if they can."""
    if snapshot.slot is not None:
        return REASON
    if snapshot.job is None or snapshot.phase not in ENGAGED:
        return ""
    return under_way(snapshot.job)


def under_way(job: rs.JobInfo) -> str:
    """Say that a job uses the model, without a full stop: "pirate is training"."""
    verb, _, name = job.title.partition(" ")
    if verb == "Training" and name:
        return f"{name} is {'paused' if job.paused else 'training'}"
    return f"{job.title} is {'paused' if job.paused else 'in progress'}"


def taken(snapshot: rs.Snapshot) -> Node | None:
    """Return a card for Chat while the model is busy or missing; None if it can answer."""
    job = snapshot.job
    if snapshot.base is None or job is None or job.paused or snapshot.phase not in ENGAGED:
        return no_base(snapshot)
    hint = " To ask now, pause it at the top." if snapshot.phase == "training" else ""
    return wait(f"{under_way(job)}. The model can answer again when it is done.{hint}")


def no_base(snapshot: rs.Snapshot) -> Node | None:
    """Return a card if no base is loaded; None if one is."""
    if snapshot.base is not None:
        return None
    if snapshot.phase == "down":
        return wait("The model process is not running. Press Start again at the top.")
    if snapshot.phase == "loading":
        return wait("The base model is loading.")
    choose = mend_button("Choose a base model", "go", "load")
    return el("div", el("p", "No base model is loaded."), choose, cls="aw-note warn")


def held(snapshot: rs.Snapshot) -> Node | None:
    """Return a card for actions that have to wait for the hot-swap slot; None without a slot."""
    if snapshot.slot is None:
        return None
    leave = mend_button("Go to Hot-swap", "go", "hotswap")
    return el("div", el("p", f"{REASON}."), leave, cls="aw-note warn")


def slot_note(snapshot: rs.Snapshot) -> Node | None:
    """Say which adapters can answer while a slot is prepared; None without a slot."""
    if snapshot.slot is None:
        return None
    sentence = "The hot-swap slot is prepared: its adapters and the base can answer, one at a time."
    return el("p", sentence, cls="aw-quiet")


def wait(sentence: str) -> Node:
    """Return a card for something that resolves itself."""
    return el("div", el("p", sentence), cls="aw-note wait")
