"""What was last said about the slot: the answer after a swap, or why something was refused.

It is kept beside the service, as the slot is: every browser tab shows the same, and an answer is
shown only for the slot and the adapter that gave it.
"""

from typing import NamedTuple

from backend import results as rs
from ui.components.feedback import Failure, failure_card
from ui.components.safe_view import Node, chip, el
from ui.components.session_facts import BASE_COLOUR
from ui.hotswap import slot_view

NOTHING: Node = el("div")


class Said(NamedTuple):
    """An answer to a question, of an adapter in a slot that was prepared at some moment."""

    prepared: float
    adapter: str
    question: str
    words: str
    swap: rs.Swapped | None
    failure: Failure | None = None


def said_view(said: Said | None, snapshot: rs.Snapshot) -> Node:
    """Show the last answer if whoever is in the slot gave it, and else how to get one."""
    slot = snapshot.slot
    if slot is None:
        return NOTHING
    if said is None or said.prepared != slot.prepared:
        return _hint("Press an adapter: it is swapped in and answers the standing question.")
    if said.failure is not None:
        stays = f"{slot.current or slot_view.BASE_LABEL} stays in the slot and answers as before."
        return el("div", failure_card(said.failure), _hint(stays))
    if said.adapter != slot.current:
        here = slot.current or slot_view.BASE_LABEL
        return _hint(f"{here} came into the slot since the last answer. Press it to hear it.")
    colours = {adapter.name: adapter.colour for adapter in snapshot.adapters}
    who = chip(said.adapter or slot_view.BASE_LABEL, colours.get(said.adapter, BASE_COLOUR))
    return slot_view.answer(who, said.words, said.swap, asked=said.question, slot=slot)


def _hint(words: str) -> Node:
    return el("p", words, cls="aw-quiet")
