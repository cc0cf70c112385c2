"""The last message about the slot: the answer after a swap, or an error.

It belongs to the app, like the slot, so that all browser tabs show the same. An answer is shown
only while its slot and its adapter are the current ones.
"""

from typing import NamedTuple

from backend import results as rs
from ui.components.feedback import Failure, failure_card
from ui.components.safe_view import Node, chip, el
from ui.components.session_facts import BASE_COLOUR
from ui.hotswap import slot_view

NOTHING: Node = el("div")


class Said(NamedTuple):
    """An answer of an adapter; `prepared` is the time at which its slot was prepared."""

    prepared: float
    adapter: str
    question: str
    words: str
    swap: rs.Swapped | None
    failure: Failure | None = None


def said_view(said: Said | None, snapshot: rs.Snapshot) -> Node:
    """Show the last answer if the adapter in the slot gave it; else how to get one."""
    slot = snapshot.slot
    if slot is None:
        return NOTHING
    if said is None or said.prepared != slot.prepared:
        return _hint("Click an adapter: it is swapped in and answers the test question.")
    if said.failure is not None:
        stays = (
            f"{slot.current or slot_view.BASE_LABEL} stays in the slot; its answers are unchanged."
        )
        return el("div", failure_card(said.failure), _hint(stays))
    if said.adapter != slot.current:
        here = slot.current or slot_view.BASE_LABEL
        return _hint(f"{here} was swapped in after the last answer. Click it to get its answer.")
    colours = {adapter.name: adapter.colour for adapter in snapshot.adapters}
    who = chip(said.adapter or slot_view.BASE_LABEL, colours.get(said.adapter, BASE_COLOUR))
    return slot_view.answer(who, said.words, said.swap, asked=said.question, slot=slot)


def _hint(words: str) -> Node:
    return el("p", words, cls="aw-quiet")
