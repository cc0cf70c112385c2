"""One run as trees for `safe_view`: progress, predictions, settings, log, actions."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from backend import USUAL_RATES, Event, adjustments
from backend import requests as rq
from backend import results as rs
from ui.components import data_sets, units
from ui.components.forms import field_of, label_of, shown
from ui.components.safe_view import Child, Node, button, chip, el, facts
from ui.components.session_facts import state_word
from ui.train.data_question import data_question
from ui.train.memory_card import how_far_off

LOG_BYTES = 8000
COMMENT_WIDTH = 80


def run_facts(
    run: rs.RunSummary,
    train: rq.Train,
    log: Path,
    changes: Sequence[str] = (),
    problem: str = "",
) -> Node:
    """Describe one run: its progress and its settings.

    `problem`: which part of its events cannot be read.
    """
    untested = "not tested" if run.eval_loss is None else "-"
    match = units.percent(run.exact_match) if run.exact_match is not None else untested
    loss = f"{units.loss(run.loss)} training, {units.loss(run.eval_loss)} held out"
    if run.kept_step:
        loss = (
            f"{units.loss(run.eval_loss)} held out at step {units.count(run.kept_step)}, the best, "
            f"which is the adapter; {units.loss(run.loss)} training at the last step"
        )
    pairs: list[tuple[str, Child]] = [
        ("Steps", f"{units.count(run.step)} of {units.count(run.total_steps)}"),
        ("Loss", loss),
        ("Exact match", match),
        ("Neutral text", neutral_change(run)),
        ("Speed", _speed(run)),
        ("Time", measured(units.duration(run.seconds), _predicted_time(run))),
        ("Memory", _memory(run)),
        ("Base", base_title(run)),
        ("Data", data_sets.title(run.data)),
        ("Started", units.when(run.created)),
    ]
    if run.data_changes:
        pairs.append(("Changed data", " ".join(run.data_changes)))
    if changes:
        pairs.append(("Changed during the run", " ".join(changes)))
    if problem:
        pairs.append(("Curve", problem))
    return el("div", facts(pairs), _settings(train), _log(log), cls="aw-run-facts")


def damaged_facts(run: rs.RunSummary, folder: Path, checkpoint: Path | None) -> Node:
    """Show what is known of a run with an unreadable file, and where its files are."""
    steps = f"{units.count(run.step)} of {units.count(run.total_steps)}" if run.total_steps else "-"
    saved = (
        "none"
        if checkpoint is None
        else f"{checkpoint}: a plain PEFT adapter; Add an adapter can load it"
    )
    pairs: list[tuple[str, Child]] = [
        ("Steps", steps),
        ("Loss", units.loss(run.loss)),
        ("Folder", el("span", str(folder), cls="aw-path")),
        ("Last checkpoint", el("span", saved, cls="aw-path")),
        ("Started", units.when(run.created)),
    ]
    return el("div", facts(pairs), _log(folder / "output.log"), cls="aw-run-facts")


def changes_of(events: Sequence[Event]) -> list[str]:
    """Return what was changed during a run; of several changes at one step, the last one."""
    held: list[Event] = []
    for event in events:
        if event.type == "resumed":
            held = [each for each in held if (each.step or 0) <= (event.step or 0)]
        elif event.type == "adjusted":
            held = [each for each in held if not _replaces(event, each)]
            held.append(event)
    return list(dict.fromkeys(each.text for each in held if each.text))


def _replaces(later: Event, earlier: Event) -> bool:
    prompts = [each.text == adjustments.OTHER_PROMPTS for each in (later, earlier)]
    return later.step == earlier.step and prompts[0] == prompts[1]


def run_actions(
    run: rs.RunSummary, adapter: rs.AdapterInfo | None, *, deleting: bool = False
) -> Node:
    """Show the actions on a run, and on its adapter if that still exists."""
    note = f"{run.message} {run.cure}".strip()
    going_on = run.state in ("queued", "running")
    whole = run.state != "damaged"
    return el(
        "div",
        el("h3", chip(run.name, run.colour, state_word(run).lower())),
        el("p", note, cls="aw-quiet") if note else None,
        el("p", run.layout_note, cls="aw-quiet") if run.layout_note else None,
        data_question(run),
        el(
            "div",
            button("Resume", "resume", run.id, kind="main") if run.resumable else None,
            button("Try it in Chat", "try", adapter.id) if adapter else None,
            button("Train again with these settings", "again", run.id) if run.data else None,
            button("Show as command", "command", run.id) if whole else None,
            button("Show as a plain PEFT script", "script", run.id) if whole else None,
            None if going_on or deleting else button("Delete", "delete", run.id),
            cls="aw-actions",
        ),
        _sure(run, adapter is not None) if deleting else None,
    )


def base_title(run: rs.RunSummary) -> str:
    """Return the base of a run, and its quantisation."""
    kept = "" if run.quantization == "none" else f", quantised ({run.quantization})"
    return f"{run.base_name}{kept}"


def other_base(run: rs.RunSummary, base: rs.ModelFacts | None) -> str:
    """Return a note if a run used another base than the loaded one; else empty."""
    if base is None or (base.name, base.quantization) == (run.base_name, run.quantization):
        return ""
    kept = "" if base.quantization == "none" else f", quantised ({base.quantization})"
    return (
        f"{run.name} was trained on {base_title(run)}, but {base.name}{kept} is loaded. To repeat "
        "it, load that base first. Otherwise the same settings are used on the loaded base."
    )


def measured(value: str, predicted: tuple[str, float] | None) -> str:
    """Write a measured value with the error of its prediction."""
    if predicted is None:
        return value
    said, off = predicted
    return f"{value} measured; {said} ({off:+.0%})"


def setting(path: str, value: Any) -> str:
    """Write the value of a setting for display."""
    if value is None or value in ("", ()):
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if path in ("data", "held_out"):
        return data_sets.title(str(value))
    return f"{value:g}" if isinstance(value, float) else str(shown(value))


def commands(found: rs.RunCommands) -> str:
    """Return the commands that repeat a run, with comments."""
    note = "".join(f"# {line}\n" for line in wrap(found.note, COMMENT_WIDTH))
    return (
        f"# The base of the run:\n{found.base}\n\n"
        f"# The run:\n{note}{found.fields}\n\n"
        f"# The same, from the request in the run's folder:\n{found.file}"
    )


def exported(found: rs.ExportedRun) -> Node:
    """Show what was written."""
    listed = f"{units.plural(len(found.files), 'file')}, {units.size(found.bytes)}"
    return el(
        "div",
        el("p", f"Written to {found.path}: {listed}.", cls="aw-evidence"),
        *(el("p", note, cls="aw-quiet") for note in found.notes),
    )


def _sure(run: rs.RunSummary, has_adapter: bool) -> Node:
    adapter = " Its adapter stays in the library." if has_adapter else ""
    return el(
        "div",
        el(
            "p",
            f"The curve, log and checkpoints of {run.name} will be deleted permanently.{adapter}",
        ),
        el(
            "div",
            button("Delete the run", "delete-now", run.id, kind="mend"),
            button("Keep it", "keep", run.id),
            cls="aw-actions",
        ),
        cls="aw-note warn",
    )


def _predicted_time(run: rs.RunSummary) -> tuple[str, float] | None:
    if run.predicted_seconds is None or run.seconds <= 0 or run.step < run.total_steps:
        return None
    off = run.predicted_seconds / run.seconds - 1
    return f"{units.duration(run.predicted_seconds)} predicted after ten steps", off


def neutral_change(run: rs.RunSummary) -> str:
    """Write the perplexity on neutral text with the adapter, and that of the base."""
    found = run.neutral_text
    if found is None:
        return "not measured"
    after, base = found.perplexity_after, units.perplexity(found.perplexity_before)
    now = "not a number" if after is None else units.perplexity(after)
    return f"perplexity {now}, base {base}"


def _speed(run: rs.RunSummary) -> str:
    said = units.speed(run.tokens_per_second)
    return f"{said} in {run.precision}" if run.precision and run.tokens_per_second else said


def _memory(run: rs.RunSummary) -> str:
    peak, predicted = run.peak_memory_bytes, run.predicted_memory_bytes
    if not peak:
        return f"{units.size(predicted)} predicted" if predicted else "not measured"
    if not predicted:
        return units.size(peak)
    return f"{units.size(peak)} measured; {units.size(predicted)} predicted{how_far_off(run)}"


def _log(file: Path) -> Node:
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - LOG_BYTES))
            said = stream.read().decode("utf-8", errors="replace").strip()
    except OSError:
        said = ""
    return el(
        "details",
        el("summary", "Log"),
        el("p", str(file), cls="aw-path"),
        el("pre", said or "Nothing was printed."),
        cls="aw-details",
    )


def is_usual_rate(name: str, value: Any) -> bool:
    """Return whether it is the learning rate of a base's size, which a run always records."""
    return name == "learning_rate" and value in USUAL_RATES


def _settings(train: rq.Train) -> Node:
    rows: list[tuple[str, Child]] = []
    for prefix, request in (
        ("", train),
        ("columns.", train.columns),
        ("adapter.", train.adapter),
    ):
        for name in type(request).model_fields:
            if name in ("name", "data", "columns", "adapter", "method"):
                continue
            field = field_of(rq.Train, prefix + name)
            value = getattr(request, name)
            changed = value != field.get_default() and not is_usual_rate(name, value)
            said = setting(prefix + name, value)
            rows.append((label_of(field), el("strong", said) if changed else said))
    return el(
        "details",
        el("summary", "Settings (changes in bold)"),
        facts(rows),
        cls="aw-details",
    )
