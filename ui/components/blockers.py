"""What stands in the way on several tabs: why, and the way out."""

from backend import results as rs
from ui.components.feedback import mend_button
from ui.components.safe_view import Node, el

REASON = "The hot-swap slot holds the model: leave it first"


ENGAGED: tuple[rs.Phase, ...] = ("training", "paused", "loading", "combining", "swapping")
"""Phases that hold the model for a while; others pass sooner than a drawing of them would."""


def engaged(snapshot: rs.Snapshot) -> str:
    """Say what keeps adapters as they are for now; nothing where they can be changed."""
    if snapshot.slot is not None:
        return REASON
    if snapshot.job is None or snapshot.phase not in ENGAGED:
        return ""
    return under_way(snapshot.job)


def under_way(job: rs.JobInfo) -> str:
    """Say that a job holds the model, without a full stop."""
    return f"{job.title} is {'paused' if job.paused else 'going on'}"


def taken(snapshot: rs.Snapshot) -> Node | None:
    """Return a card for questions, where the model has no time for them now."""
    job = snapshot.job
    if snapshot.base is None or job is None or job.paused or snapshot.phase not in ENGAGED:
        return no_base(snapshot)
    way_out = " Pause it at the top to ask meanwhile." if snapshot.phase == "training" else ""
    return wait(f"{job.title} is going on; the model answers again afterwards.{way_out}")


def no_base(snapshot: rs.Snapshot) -> Node | None:
    """Return a card for what needs a base; None where one is loaded."""
    if snapshot.base is not None:
        return None
    if snapshot.phase == "down":
        return wait("The model process is not running. Press Start again at the top.")
    if snapshot.phase == "loading":
        return wait("The base model is loading.")
    way_out = mend_button("Choose a base model", "go", "load")
    return el("div", el("p", "No base model is loaded."), way_out, cls="aw-note warn")


def held(snapshot: rs.Snapshot) -> Node | None:
    """Return a card for what waits until the slot is left; None where no slot is prepared."""
    if snapshot.slot is None:
        return None
    way_out = mend_button("Go to Hot-swap", "go", "hotswap")
    return el("div", el("p", f"{REASON}."), way_out, cls="aw-note warn")


def slot_note(snapshot: rs.Snapshot) -> Node | None:
    """Say who can be asked while a slot is prepared; None where none is."""
    if snapshot.slot is None:
        return None
    sentence = "The hot-swap slot is prepared: its adapters and the base can answer, in turn."
    return el("p", sentence, cls="aw-quiet")


def wait(sentence: str) -> Node:
    """Return a card for what mends itself."""
    return el("div", el("p", sentence), cls="aw-note wait")
