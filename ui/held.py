"""What a person reads where a prepared hot-swap slot holds the model: why, and the way out."""

from backend import results as rs
from ui.feedback import mend_button
from ui.safe_view import Node, el

REASON = "The hot-swap slot holds the model: leave it first"


def held(snapshot: rs.Snapshot) -> Node | None:
    """Return a card for what waits until the slot is left; None where no slot is prepared."""
    if snapshot.slot is None:
        return None
    way_out = mend_button("Go to Hot-swap", "go", "hotswap")
    return el("div", el("p", f"{REASON}."), way_out, cls="aw-note warn")
