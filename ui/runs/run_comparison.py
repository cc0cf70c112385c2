"""The comparison of several runs, as trees for `safe_view`: results, settings, answers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from backend import requests as rq
from backend import results as rs
from ui.components import data_sets, units
from ui.components.forms import field_of, label_of
from ui.components.safe_view import Node, chip, el
from ui.components.session_facts import BASE_COLOUR, fits
from ui.components.tables import cell, table
from ui.runs.run_detail import base_title, setting
from ui.runs.run_table import run_state

MOST_ADAPTERS = 5
RESULT_HEADS = (
    "Run", "State", "Training loss", "Held-out loss", "Exact match", "Speed", "Steps", "Time",
    "Peak memory",
)  # fmt: skip


class Compared(NamedTuple):
    """One of the runs that are compared, with its settings."""

    run: rs.RunSummary
    train: rq.Train
    changes: Sequence[str] = ()
    """What was changed in it during the run."""


class Answerers(NamedTuple):
    """The adapters that can answer now, and why the others cannot."""

    adapters: list[rs.AdapterInfo]
    left_out: list[str]


def told_apart(runs: Sequence[rs.RunSummary]) -> list[rs.RunSummary]:
    """Return the runs with unique names: equal names get the start time added."""
    names = [run.name for run in runs]
    return [
        run.model_copy(update={"name": f"{run.name} ({units.when(run.created)})"})
        if names.count(run.name) > 1
        else run
        for run in runs
    ]


def comparison(compared: Sequence[Compared]) -> Node:
    """Show the results, and only the settings that differ."""
    return el(
        "div",
        el("h3", "Results"),
        results([each.run for each in compared]),
        el("h3", "Settings that differ"),
        settings(compared),
        cls="aw-comparison",
    )


def results(runs: Sequence[rs.RunSummary]) -> Node:
    """List the runs' figures; the best of a column is bold."""
    best = _best_of(runs)
    return table("Results", RESULT_HEADS, [_result_row(run, best) for run in runs])


def settings(compared: Sequence[Compared]) -> Node:
    """List the settings in which the runs differ."""
    rows = differences(compared)
    if not rows:
        return el("p", "None: these runs have the same settings.", cls="aw-quiet")
    heads = ("Setting", *(each.run.name for each in compared))
    drawn = [
        el(
            "tr",
            cell("Setting", label),
            *(cell(name, value) for name, value in zip(heads[1:], values, strict=True)),
        )
        for label, values in rows
    ]
    return table("Settings that differ", heads, drawn)


def differences(compared: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Return (label, value of each run) for all settings that are not the same in all runs."""
    flat = [{"base": base_title(each.run), **_flat(each.train.model_dump())} for each in compared]
    paths = [path for path in flat[0] if path != "name"] if flat else []
    found = [
        (_label(path), [setting(path, each.get(path)) for each in flat])
        for path in paths
        if any(each.get(path) != flat[0][path] for each in flat)
    ]
    computed = [each.run.precision or "-" for each in compared]
    changed = [" ".join(each.changes) or "nothing" for each in compared]
    if len(set(computed)) > 1:
        found.append(("Computed in", computed))
    return [*found, ("Changed during the run", changed)] if len(set(changed)) > 1 else found


# -- answers -------------------------------------------------------------------------------------


def answerers(runs: Sequence[rs.RunSummary], snapshot: rs.Snapshot) -> Answerers:
    """Return the adapters that fit the loaded base, up to the limit, and why others cannot."""
    by_run = {info.run_id: info for info in snapshot.adapters if info.run_id}
    able: list[rs.AdapterInfo] = []
    left_out = []
    for run in runs:
        info = by_run.get(run.id)
        if info is None:
            left_out.append(f"{run.name} has no adapter.")
        elif not fits(info, snapshot.base):
            left_out.append(f"{run.name} was made for {run.base_name}, which is not loaded.")
        elif len(able) == MOST_ADAPTERS:
            left_out.append(f"{run.name}: {MOST_ADAPTERS} adapters is the limit.")
        else:
            able.append(info)
    return Answerers(able, left_out)


def answers(
    prompts: Sequence[str], adapters: Sequence[rs.AdapterInfo], found: Sequence[Sequence[str]]
) -> Node:
    """Show all answers, one prompt after the other; the base comes first."""
    who = [("base", BASE_COLOUR), *((info.name, info.colour) for info in adapters)]
    blocks = [
        el(
            "section",
            el("p", el("strong", prompt)),
            el(
                "div",
                *(
                    el("div", chip(*each), el("p", said[number].strip() or "(an empty answer)",
                                              cls="aw-answer"))
                    for each, said in zip(who, found, strict=True)
                ),
                cls="aw-side",
            ),
            cls="aw-block",
        )
        for number, prompt in enumerate(prompts)
    ]  # fmt: skip
    return el("div", *blocks)


def try_prompts(runs: Sequence[rs.RunSummary]) -> list[str]:
    """Return questions that show what these runs should have learned."""
    known = [data_sets.bundled_set(run.data) for run in runs]
    return list(dict.fromkeys(each.try_prompt for each in known if each and each.try_prompt))


# -- parts ---------------------------------------------------------------------------------------


def _result_row(run: rs.RunSummary, best: dict[str, set[str]]) -> Node:
    match = units.percent(run.exact_match) if run.exact_match is not None else "-"
    kept = f", the best, at step {units.count(run.kept_step)}" if run.kept_step else ""
    values = {
        "Training loss": units.loss(run.loss),
        "Held-out loss": units.loss(run.eval_loss) + kept,
        "Exact match": match,
        "Speed": units.speed(run.tokens_per_second),
    }
    return el(
        "tr",
        cell("Run", chip(run.name, run.colour), cls="aw-name"),
        cell("State", run_state(run)),
        *(
            cell(head, el("strong", said) if run.id in best[head] else said)
            for head, said in values.items()
        ),
        cell("Steps", f"{units.count(run.step)} of {units.count(run.total_steps)}"),
        cell("Time", units.duration(run.seconds)),
        cell("Peak memory", units.size(run.peak_memory_bytes) if run.peak_memory_bytes
             else "-"),
    )  # fmt: skip


def _best_of(runs: Sequence[rs.RunSummary]) -> dict[str, set[str]]:
    """Return the best runs of each column; none for losses if the runs used different data."""
    columns: dict[str, list[tuple[float | None, str]]] = {
        "Training loss": [(run.loss, run.id) for run in runs],
        "Held-out loss": [(run.eval_loss, run.id) for run in runs],
        "Exact match": [(_minus(run.exact_match), run.id) for run in runs],
        "Speed": [(_minus(run.tokens_per_second), run.id) for run in runs],
    }
    same_data = len({run.data for run in runs}) == 1
    found = {}
    for head, pairs in columns.items():
        known = [value for value, _ in pairs if value is not None]
        comparable = (same_data or head == "Speed") and len(set(known)) > 1
        least = min(known) if comparable else None
        found[head] = {run for value, run in pairs if least is not None and value == least}
    return found


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def _label(path: str) -> str:
    if path == "base":
        return "Base"
    try:
        return label_of(field_of(rq.Train, path))
    except (AttributeError, KeyError):  # a setting without a label
        return path
