"""The memory card: what a run needs, part by part, against what the machine has."""

import json
from typing import Any

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.components import units
from ui.components.feedback import mend_button, refuse
from ui.components.safe_view import Child, Node, el
from ui.components.service_handle import ServiceHandle

NAMES = {
    "weights": ("Weights", "the base model itself"),
    "adapter": ("Adapter", "the trainable parameters"),
    "gradients": ("Gradients", "one per trainable parameter"),
    "optimiser": ("Optimiser", "Adam's state for them"),
    "activations": ("Activations", "layer outputs kept for the backward pass"),
    "logits": ("Logits", "scores over the vocabulary, at tokens with loss"),
    "overhead": ("Overhead", "temporary buffers and libraries"),
}
COLOURS = {
    "weights": "#8A8F98",
    "adapter": "#009E73",
    "gradients": "#E69F00",
    "optimiser": "#CC79A7",
    "activations": "#0072B2",
    "logits": "#56B4E9",
    "overhead": "#B8BCC4",
}

TELLING_BYTES = 150 * 10**6
"""Below this, the error of a prediction depends more on the process than on the run."""


def memory_card(report: rs.PreflightReport | None) -> Node:
    """Show the memory that a run needs before it starts; empty if it is not known yet."""
    if report is None or not report.memory_parts:
        return el("div")
    sizes = dict(report.memory_parts)
    loaded = sizes["weights"]
    room = report.memory_available_bytes + loaded
    return el(
        "div",
        el("p", el("strong", _finding(report)), cls="aw-memory-title"),
        _bar(report.memory_parts, max(room, sum(sizes.values()))),
        _legend(report.memory_parts),
        el("p", _budget(report), cls="aw-quiet"),
        _mend(report),
        cls="aw-memory",
    )


def measured_line(run: rs.RunSummary) -> Node | None:
    """Return predicted and measured memory of a run; None if nothing was measured."""
    if not run.peak_memory_bytes or not run.predicted_memory_bytes:
        return None
    return el(
        "p",
        f"Peak memory: {units.size(run.peak_memory_bytes)} measured, "
        f"{units.size(run.predicted_memory_bytes)} predicted{how_far_off(run)}.",
        cls="aw-quiet",
    )


def how_far_off(run: rs.RunSummary) -> str:
    """Return the relative error of the prediction; empty if the run used too little memory."""
    if run.peak_memory_bytes < TELLING_BYTES:
        return ""
    return f" ({run.predicted_memory_bytes / run.peak_memory_bytes - 1:+.0%})"


def retry_button(run: rs.RunSummary) -> Node | None:
    """Return a button that retries an out-of-memory run with settings that fit."""
    if not run.retry:
        return None
    return mend_button(f"Retry with {change_words(run.retry)}", "retry", run.id)


def with_changes(train: rq.Train, change: dict[str, Any]) -> rq.Train:
    """Return a request with a change of settings applied, as a retry sends it."""
    return rq.Train(**{**train.model_dump(), **change})


def change_words(change: dict[str, Any]) -> str:
    """Describe a change of settings."""
    parts = []
    if change.get("gradient_checkpointing"):
        parts.append("gradient checkpointing")
    if "tokens_per_step" in change:
        parts.append(f"{units.count(int(change['tokens_per_step']))} tokens per batch")
    return " and ".join(parts)


def _finding(report: rs.PreflightReport) -> str:
    need, free = (
        units.size(report.memory_bytes),
        units.size(report.memory_available_bytes),
    )
    fits = report.memory_bytes <= report.memory_available_bytes
    said = f"Memory: the run needs {need} in addition to the loaded base; {free} are free"
    return said + ("" if fits else ". It does not fit")


def _bar(parts: list[tuple[str, int]], room: int) -> Node:
    pieces = [
        el(
            "div",
            cls="aw-memory-part",
            share=size / room,
            colour=COLOURS[name],
            title=f"{NAMES[name][0]}: {units.size(size)}",
        )
        for name, size in parts
    ]
    spoken = ", ".join(f"{NAMES[name][0]} {units.size(size)}" for name, size in parts)
    return el("div", *pieces, cls="aw-memory-bar", role="img", aria_label=spoken)


def _legend(parts: list[tuple[str, int]]) -> Node:
    items = [
        el(
            "li",
            el("span", cls="aw-dot", colour=COLOURS[name], aria_hidden="true"),
            f"{NAMES[name][0]} ",
            el("span", units.size(size), cls="aw-quiet"),
            title=NAMES[name][1],
        )
        for name, size in parts
    ]
    return el("ul", *items, cls="aw-memory-legend")


def _budget(report: rs.PreflightReport) -> str:
    if not report.largest_token_budget:
        return "No batch fits into memory with these settings."
    budget, stats = report.largest_token_budget, report.stats
    if stats is not None and stats.tokens <= budget:
        return f"All examples fit into one batch ({units.count(stats.tokens)} tokens)."
    return f"Largest batch that fits: {units.count(budget)} tokens."


def _mend(report: rs.PreflightReport) -> Child:
    """Offer smaller settings, and a smaller base, where the run does not fit."""
    change, base = report.smallest_change, report.smaller_base
    offers = [
        mend_button(f"Use {change_words(change)}", "fit", json.dumps(change)) if change else None,
        mend_button(f"Load {base.title}", "smaller", json.dumps(base.load)) if base else None,
    ]
    return el("div", *offers) if any(offers) else None


def load_smaller(handle: ServiceHandle, fields: str) -> None:
    """Load the base that was offered; says why where that is not possible."""
    try:
        handle.start(rq.LoadModel(**json.loads(fields)))
    except errors.WorkbenchError as error:
        refuse("Cannot load it", error)
