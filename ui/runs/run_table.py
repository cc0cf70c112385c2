"""The tables of runs and of queued runs, as trees for `safe_view`."""

from collections.abc import Collection, Sequence

from backend import results as rs
from ui.components import data_sets, units
from ui.components.safe_view import Node, button, chip, el
from ui.components.session_facts import state_word
from ui.components.tables import cell, table

MARKS = {
    "queued": "wait",
    "running": "run",
    "finished": "good",
    "stopped": "wait",
    "failed": "bad",
    "interrupted": "bad",
    "damaged": "bad",
}


RUN_HEADS = ("Compare", "State", "Name", "Data", "Method", "Loss", "Exact match", "Speed", "When")


def run_table(runs: Sequence[rs.RunSummary], selected: str, ticked: Collection[str] = ()) -> Node:
    """List runs, newest first; a row can be selected, and ticked for comparison."""
    if not runs:
        return el(
            "p", "No runs to show. Change the filter, or train an adapter.", cls="aw-quiet aw-empty"
        )
    return table(
        "Runs",
        RUN_HEADS,
        [_run_row(run, selected=run.id == selected, ticked=run.id in ticked) for run in runs],
    )


def filtered(runs: Sequence[rs.RunSummary], words: str, state: str) -> list[rs.RunSummary]:
    """Return the runs that contain every word and have the wanted state."""
    wanted = words.casefold().split()
    return [
        run
        for run in runs
        if (state in ("", run.state))
        and all(
            word in f"{run.name} {run.data} {run.method} {run.base_name} {run.note}".casefold()
            for word in wanted
        )
    ]


def run_state(run: rs.RunSummary) -> Node:
    """Show the state of a run as text with a coloured mark."""
    mark = "paused" if run.paused else MARKS[run.state]
    return el("span", state_word(run), cls=f"aw-state {mark}")


def _run_row(run: rs.RunSummary, *, selected: bool, ticked: bool) -> Node:
    match = units.percent(run.exact_match) if run.exact_match is not None else "-"
    return el(
        "tr",
        cell("Compare", "-" if run.state == "damaged" else _tick(run, ticked)),
        cell("State", run_state(run)),
        cell("Name", chip(run.name, run.colour), cls="aw-name"),
        cell("Data", data_sets.title(run.data) if run.data else "-"),
        cell(
            "Method",
            units.method(run.method, run.rank, experts=run.experts) if run.method else "-",
        ),
        cell("Loss", units.loss(run.loss)),
        cell("Exact match", match),
        cell("Speed", units.speed(run.tokens_per_second)),
        cell("When", units.when(run.created)),
        cls="pick selected" if selected else "pick",
        data_act="pick",
        data_arg=run.id,
        tabindex="0",
        aria_selected="true" if selected else "false",
    )


def queue_list(queue: Sequence[rs.QueuedRun]) -> Node:
    """List the queued runs in order; empty without any."""
    if not queue:
        return el("div")
    rows = [_queued_row(number, each) for number, each in enumerate(queue, 1)]
    return el(
        "div",
        el("h3", f"{units.plural(len(queue), 'run')} in the queue"),
        table("Queue", ("Number", "Name", "Data", "Method", "Since", ""), rows),
        cls="aw-queue",
    )


def _queued_row(number: int, each: rs.QueuedRun) -> Node:
    waits = f"waiting for {each.waits_for}" if each.waits_for else ""
    asks = el("p", each.question, cls="aw-queue-asks") if each.question else None
    confirm = button("Use the new data", "confirm", each.id, kind="mend") if each.question else None
    return el(
        "tr",
        cell("Number", str(number)),
        cell("Name", el("strong", each.name), el("span", f" {waits}", cls="aw-quiet"), asks,
             confirm, cls="aw-name"),
        cell("Data", data_sets.title(each.data)),
        cell("Method", units.method(each.method, each.rank, experts=each.experts)),
        cell("Since", units.when(each.added)),
        cell("", button("Remove", "unqueue", each.id, aria_label=f"Remove {each.name}")),
    )  # fmt: skip


def _tick(run: rs.RunSummary, ticked: bool) -> Node:
    return button(
        "",
        "tick",
        run.id,
        kind="aw-tick",
        role="checkbox",
        aria_checked="true" if ticked else "false",
        aria_label=f"Compare {run.name} of {units.when(run.created)}",
    )
