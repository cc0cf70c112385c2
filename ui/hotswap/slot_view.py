"""What the Hot-swap tab shows, as pure functions: candidates, the slot, and its timings."""

import math
from typing import NamedTuple

from backend import blends
from backend import results as rs
from ui.components import units
from ui.components.blockers import under_way
from ui.components.feedback import evidence
from ui.components.safe_view import Child, Node, button, chip, el
from ui.components.session_facts import BASE_COLOUR, fits

PLAIN = ("LoRA", "rsLoRA")
BASE_LABEL = "base"
SHORTEST = 0.0005
"""Seconds at the zero of the logarithmic scale."""
FAR_APART = 20
"""If the largest time is this many times the smallest, the scale is logarithmic."""


class Misfit(NamedTuple):
    """Why an adapter cannot share a slot; `convertible`: whether converting it helps."""

    reason: str
    convertible: bool


def misfit(adapter: rs.AdapterInfo, base: rs.ModelFacts | None) -> Misfit | None:
    """Return why an adapter cannot share a slot on this base; None if it can."""
    if not fits(adapter, base):
        return Misfit(f"made for {adapter.base_name}, which is not loaded", False)
    if adapter.by_parameter:
        return Misfit("it changes parameters of experts", False)
    if adapter.method in PLAIN:
        return None
    quantised = base is not None and base.quantization != "none"
    convertible = blends.is_convertible(adapter) and not quantised
    first = "; to convert it, load the base in full precision" if quantised else ""
    if adapter.method == "DoRA":
        return Misfit(
            f"DoRA rescales whole weight matrices, not only a LoRA update{first}", convertible
        )
    if adapter.method.casefold() in blends.CHANGES_THE_BASE:
        return Misfit(f"{adapter.method} changes the base itself{first}", convertible)
    return Misfit(f"{adapter.method} is not plain LoRA", convertible)


def candidates(snapshot: rs.Snapshot) -> list[rs.AdapterInfo]:
    """Return the adapters that can share a slot on the loaded base."""
    return [each for each in snapshot.adapters if misfit(each, snapshot.base) is None]


def can_convert(snapshot: rs.Snapshot) -> bool:
    """Return whether any adapter that cannot share a slot can be converted to plain LoRA."""
    found = (misfit(each, snapshot.base) for each in snapshot.adapters)
    return any(why is not None and why.convertible for why in found)


def misfits(snapshot: rs.Snapshot) -> Node:
    """List the adapters that cannot share a slot, each with the reason and a fix if any."""
    if snapshot.base is None:
        return el("div")
    rows = []
    busy = snapshot.job is not None
    for adapter in snapshot.adapters:
        why = misfit(adapter, snapshot.base)
        if why is None:
            continue
        convert = (
            button("Convert to plain LoRA", "convert", adapter.name, disabled=busy)
            if why.convertible
            else None
        )
        words = el("span", f"cannot share a slot: {why.reason}.", cls="aw-quiet")
        rows.append(el("li", chip(adapter.name, adapter.colour), words, convert))
    return el("div", el("ul", *rows, cls="aw-misfits") if rows else None)


def prepare_label(names: list[str], compile_seconds: float | None) -> str:
    """Return the label of the button with its cost; None means without compiling."""
    if not names:
        return "Choose adapters for the slot"
    what = names[0] if len(names) == 1 else units.plural(len(names), "adapter")
    if compile_seconds is None:
        return f"Prepare {what} (without compiling, a few seconds)"
    return f"Prepare {what} (compiles once, about {units.duration(compile_seconds)})"


def width(snapshot: rs.Snapshot, ticked: list[str]) -> Child:
    """Return a note if the ranks differ, because the slot gets the largest rank."""
    sharing = [each for each in candidates(snapshot) if each.name in ticked]
    if not sharing:
        return None
    widest = max(sharing, key=lambda each: each.rank)
    if widest.rank == min(each.rank for each in sharing):
        return None
    words = (
        f"The slot gets rank {widest.rank}, the rank of {widest.name}. The others are padded to "
        "it, which changes no answer, and every adapter runs at the speed of the largest."
    )
    return el("p", words, cls="aw-quiet")


def strengths(snapshot: rs.Snapshot) -> Child:
    """Return a note on the active adapters, unless it is only one at strength 1."""
    if not snapshot.active or (len(snapshot.active) == 1 and snapshot.active[0][1] == 1.0):
        return None
    on = ", ".join(f"{name} {strength:g}" for name, strength in snapshot.active)
    words = (
        f"In the slot each adapter answers alone and at strength 1. The active adapters ({on}) are "
        "restored when you leave the slot."
    )
    return el("p", words, cls="aw-quiet")


def why_not(snapshot: rs.Snapshot) -> str:
    """Return why a slot cannot be prepared now; empty if it can."""
    if snapshot.base is None:
        return "No base model is loaded."
    if snapshot.job is not None:
        return f"{under_way(snapshot.job)}."
    if not candidates(snapshot):
        return "There is no adapter for a slot yet. Train one, or add one on the Load tab."
    return ""


def swap_buttons(snapshot: rs.Snapshot) -> Node:
    """Show a button per adapter; the one in the slot is marked with text and a border."""
    slot = snapshot.slot
    if slot is None:
        return el("div")
    colours = {adapter.name: adapter.colour for adapter in snapshot.adapters}
    buttons = [
        _swap_button(name, colours.get(name, BASE_COLOUR), name == slot.current)
        for name in slot.adapters
    ]
    buttons.append(_swap_button("", BASE_COLOUR, not slot.current))
    return el("div", *buttons, cls="aw-swaps", role="group", aria_label="Who answers")


def _swap_button(name: str, colour: str, pressed: bool) -> Node:
    return el(
        "button",
        el("span", cls="aw-dot", colour=colour, aria_hidden="true"),
        name or BASE_LABEL,
        # Invisible but present, so that no button moves when another is clicked.
        el(
            "span",
            "in the slot",
            cls="aw-quiet" if pressed else "aw-quiet aw-unseen",
            aria_hidden=None if pressed else "true",
        ),
        cls="aw-button aw-swap pressed" if pressed else "aw-button aw-swap",
        data_act="swap",
        data_arg=name,
        aria_pressed="true" if pressed else "false",
    )


def answer(
    who: Node, words: str, swap: rs.Swapped | None, *, asked: str, slot: rs.SlotStatus
) -> Node:
    """Show an answer, its question, and how the swap before it was verified."""
    line = None
    if swap is not None:
        compiled = units.plural(swap.recompilations, "recompilation")
        line = evidence(
            f"Swapped in {short_time(swap.seconds)}{f', {compiled}' if slot.compiled else ''}; "
            f"same answers as a plain load (largest difference {units.small(swap.max_difference)})."
        )
    return el(
        "div",
        el("div", who, el("span", asked, cls="aw-quiet aw-asked")),
        el("p", words or "…", cls="aw-answer"),
        el("div", line, role="status"),
        cls="aw-said",
    )


def times(slot: rs.SlotStatus) -> Node:
    """Draw the measured times of the ways to change the adapter, and the speeds."""
    measured = slot.times
    if measured is None:
        return el("div")
    rows: list[tuple[str, float]] = [
        ("Hot-swap", measured.hotswap_seconds),
        ("Plain switch", measured.switch_seconds),
        ("Reload from disk", measured.reload_seconds),
    ]
    if measured.recompile_seconds is not None:
        rows.append(("Compile again", measured.recompile_seconds))
    shares = bar_shares([seconds for _, seconds in rows])
    bars = [_bar(*row, share) for row, share in zip(rows, shares, strict=True)]
    return el(
        "div",
        el("h3", finding(slot), cls="aw-chart-title"),
        el("div", *bars, cls="aw-times"),
        el(
            "p",
            "Time to change the adapter and compute the first token of the next answer, measured "
            f"on this machine when the slot was prepared.{_besides(measured)}"
            f"{_about_scale([seconds for _, seconds in rows])}",
            cls="aw-quiet aw-small",
        ),
        _speeds(slot),
        cls="aw-picture",
    )


def _besides(measured: rs.SwapTimes) -> str:
    """Return notes on what the bars include and leave out."""
    said = ""
    if measured.check_seconds is not None:
        said += (
            " Each swap is also verified against the adapter's reference output, which takes "
            f"{short_time(measured.check_seconds)} more."
        )
    if measured.recompile_seconds is not None:
        said += (
            " Compile again is the cost of a swap in a model without a slot: the compilation time "
            "measured while preparing, up to the first token."
        )
    return said


def finding(slot: rs.SlotStatus) -> str:
    """Return the main finding of the times: the title of the chart."""
    measured = slot.times
    if measured is None:
        return ""
    if measured.recompile_seconds is not None:
        factor = measured.recompile_seconds / measured.hotswap_seconds
        sooner = (
            f"A hot-swap answers {units.count(round(factor))} times sooner than compiling again"
        )
        as_plain = measured.switch_seconds <= measured.hotswap_seconds
        return f"{sooner}, but not sooner than a plain switch" if as_plain else sooner
    if measured.switch_seconds <= measured.hotswap_seconds:
        plain, swap = map(short_time, (measured.switch_seconds, measured.hotswap_seconds))
        return f"Without compiling, a plain switch is as fast: {plain}, a hot-swap {swap}"
    ratio = measured.reload_seconds / measured.hotswap_seconds
    if ratio >= 1.5:
        return f"A hot-swap answers {ratio:.1f} times sooner than a reload from disk"
    return f"A hot-swap answers within {short_time(measured.hotswap_seconds)}"


def bar_shares(times: list[float]) -> list[float]:
    """Return the lengths of the bars: linear, or logarithmic if the times are far apart."""
    longest = max(times)
    if longest < FAR_APART * min(times):
        return [seconds / longest for seconds in times]
    top = _tenfolds(longest)
    return [math.log10(max(seconds, SHORTEST) / SHORTEST) / top for seconds in times]


def _tenfolds(longest: float) -> float:
    return math.log10(max(longest, 10 * SHORTEST) / SHORTEST)


def _about_scale(times: list[float]) -> str:
    if max(times) < FAR_APART * min(times):
        return ""
    part = units.percent(1 / _tenfolds(max(times)))
    return f" The scale is logarithmic: {part} of the width means ten times the time."


def _bar(name: str, seconds: float, share: float) -> Node:
    return el(
        "div",
        el("span", name),
        el("div", el("div", cls="aw-fill", share=share), cls="aw-bar-track", aria_hidden="true"),
        el("span", short_time(seconds), cls="aw-figure"),
        cls="aw-time" if name != "Hot-swap" else "aw-time ours",
    )


def _speeds(slot: rs.SlotStatus) -> Child:
    eager, compiled = slot.tokens_per_second_eager, slot.tokens_per_second_compiled
    words = []
    if eager and compiled:
        words.append(
            f"Answers: {units.speed(compiled)} compiled, {units.speed(eager)} not compiled."
        )
    elif eager:
        words.append(f"Answers: {units.speed(eager)}, not compiled.")
    if slot.compiled:
        words.append(f"{units.plural(slot.recompilations, 'recompilation')} since it was prepared.")
        words.append(f"Compiling and warming up took {units.duration(slot.compile_seconds)}.")
    if slot.memory_bytes:
        words.append(
            f"The slot takes {units.size(slot.memory_bytes)}: every adapter is padded to rank "
            f"{slot.rank}."
        )
    return el(
        "div",
        el("p", " ".join(words)),
        el("p", slot.note, cls="aw-note warn") if slot.note else None,
    )


def left(slot: rs.SlotLeft) -> Node:
    """Show that leaving the slot restored the session."""
    return evidence(
        "Verified: answers are the same as before the hot-swap "
        f"(largest difference {units.small(slot.max_difference)})."
    )


def short_time(seconds: float) -> str:
    """Write a time in the unit that fits: "0.4 ms", "42 ms", "2.9 s", "1 min 20 s"."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else units.duration(seconds)
