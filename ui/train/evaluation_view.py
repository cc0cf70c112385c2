"""Evaluation of a run: metrics and sample answers of the base and of the adapter."""

from collections.abc import Sequence

from backend import Event
from backend import results as rs
from ui.components import units
from ui.components.safe_view import Node, el
from ui.components.tables import cell, table


def evaluation_view(
    before: rs.Evaluation | None, after: rs.Evaluation | None, events: Sequence[Event]
) -> Node | None:
    """Show metrics and samples on held-out data; None if nothing was held out."""
    if before is None or after is None:
        return None
    return el("div", _figures(before, after), _samples(events), cls="aw-evaluation")


def _figures(before: rs.Evaluation, after: rs.Evaluation) -> Node:
    rows = [
        _row("Loss (nats per token)", f"{before.loss:.3f}", f"{after.loss:.3f}"),
        _row(
            "Perplexity",
            units.perplexity(before.perplexity),
            units.perplexity(after.perplexity),
        ),
        _row(
            "Correct tokens",
            units.percent(before.token_accuracy),
            units.percent(after.token_accuracy),
        ),
    ]
    if before.exact_match is not None and after.exact_match is not None:
        rows.append(
            _row("Exact match", units.percent(before.exact_match), units.percent(after.exact_match))
        )
    title = f"On {units.plural(after.examples, 'held-out example')}"
    return el("div", el("h3", title), table(title, ("", "Base", "Adapter"), rows))


def _row(name: str, base: str, adapter: str) -> Node:
    return el("tr", cell("", name), cell("Base", base), cell("Adapter", el("strong", adapter)))


def _samples(events: Sequence[Event]) -> Node | None:
    """Show the samples from the end of the run; for a resumed run only the last end counts."""
    last = max((event.step or 0 for event in events if event.type == "sample"), default=0)
    found = [event for event in events if event.type == "sample" and (event.step or 0) == last]
    if not found:
        return None
    rows = [
        el(
            "tr",
            cell("Question", event.prompt or ""),
            cell("Expected answer", event.reference or ""),
            cell("Base", event.base or ""),
            cell("Adapter", el("strong", event.text or "")),
        )
        for event in found
    ]
    title = "Answers to unseen examples"
    heads = ("Question", "Expected answer", "Base", "Adapter")
    return el("div", el("h3", title), table(title, heads, rows))
