"""The tables of adapters and runs and one run's facts, as trees for `safe_view`."""

from collections.abc import Sequence

from backend import requests as rq
from backend import results as rs
from ui import data_sets, text
from ui.forms import field_of, label_of, shown
from ui.safe_view import Child, Node, button, chip, el, facts
from ui.view import state_word

MARKS = {
    "queued": "wait",
    "running": "run",
    "finished": "good",
    "stopped": "wait",
    "failed": "bad",
    "interrupted": "bad",
}


def table(title: str, heads: Sequence[str], rows: Sequence[Node]) -> Node:
    """Describe a table; on a phone each row becomes a card, so cells carry their head."""
    head = el("thead", el("tr", *(el("th", name, scope="col") for name in heads)))
    caption = el("caption", title, cls="aw-only-read")
    return el("div", el("table", caption, head, el("tbody", *rows)), cls="aw-table")


def cell(head: str, *content: Child, cls: str | None = None) -> Node:
    """Describe one cell."""
    return el("td", *content, data_label=head, cls=cls)


# -- the base ------------------------------------------------------------------------------------


def base_facts(base: rs.ModelFacts | None) -> Node:
    """Describe the loaded base."""
    if base is None:
        sentence = "No base model is loaded. The bundled starter is ready in a few seconds."
        return el("p", sentence, cls="aw-quiet aw-empty")
    predicted, measured = base.memory_predicted_bytes, base.memory_measured_bytes
    pairs: list[tuple[str, Child]] = [
        ("Name", base.name),
        ("Architecture", f"{base.architecture}, {base.layers} layers, {base.hidden_size} wide"),
        ("Parameters", f"{text.short_count(base.parameters)} ({text.count(base.parameters)})"),
        ("Precision", f"{base.precision}: {base.precision_reason}"),
        *([("Quantised", base.quantization_note)] if base.quantization_note else []),
        ("Device", base.device),
        ("Memory", f"{text.size(measured)} measured, {text.size(predicted)} predicted"),
        *([("Saved", f"{text.size(base.bytes_saved)} by quantising")] if base.bytes_saved else []),
        ("Context length", text.plural(base.context_length, "token")),
        ("Vocabulary", text.plural(base.vocabulary, "token")),
        ("Chat template", "yes" if base.chat_template else "no: plain text is continued"),
        ("Loaded in", text.duration(base.seconds)),
        ("From", el("span", base.path, cls="aw-path")),
    ]
    return facts(pairs)


# -- runs ----------------------------------------------------------------------------------------

RUN_HEADS = ("State", "Name", "Data", "Method", "Loss", "Exact match", "Speed", "When")


def run_table(runs: Sequence[rs.RunSummary], selected: str) -> Node:
    """List runs, newest first; a row can be picked."""
    if not runs:
        return el("p", "No runs here.", cls="aw-quiet aw-empty")
    return table("Runs", RUN_HEADS, [_run_row(run, run.id == selected) for run in runs])


def filtered(runs: Sequence[rs.RunSummary], words: str, state: str) -> list[rs.RunSummary]:
    """Return the runs in which every word occurs, in the wanted state."""
    wanted = words.casefold().split()
    return [
        run
        for run in runs
        if (state in ("", run.state))
        and all(
            word in f"{run.name} {run.data} {run.method} {run.base_name}".casefold()
            for word in wanted
        )
    ]


def run_facts(run: rs.RunSummary, train: rq.Train, log: str) -> Node:
    """Describe one run: where it stands and the settings that are not the defaults."""
    match = text.percent(run.exact_match) if run.exact_match is not None else "not tested"
    pairs: list[tuple[str, Child]] = [
        ("Steps", f"{text.count(run.step)} of {text.count(run.total_steps)}"),
        ("Loss", f"{text.loss(run.loss)} training, {text.loss(run.eval_loss)} held out"),
        ("Exact match", match),
        ("Time", f"{text.duration(run.seconds)}, {text.speed(run.tokens_per_second)}"),
        ("Base", run.base_name),
        ("Data", data_sets.title(run.data)),
        ("Log", el("span", log, cls="aw-path")),
    ]
    return el("div", facts(pairs), _settings(train), cls="aw-run-facts")


def run_actions(run: rs.RunSummary, adapter: rs.AdapterInfo | None) -> Node:
    """Offer what can be done with a run and the adapter that it made, if that is still there."""
    note = f"{run.message} {run.cure}".strip()
    return el(
        "div",
        el("h3", chip(run.name, run.colour, state_word(run).lower())),
        el("p", note, cls="aw-quiet") if note else None,
        el(
            "div",
            button("Resume", "resume", run.id, kind="main") if run.resumable else None,
            button("Try it in Chat", "try", adapter.id) if adapter else None,
            cls="aw-actions",
        ),
    )


def _run_row(run: rs.RunSummary, selected: bool) -> Node:
    mark = el("span", state_word(run), cls=f"aw-state {MARKS[run.state]}")
    match = text.percent(run.exact_match) if run.exact_match is not None else "-"
    return el(
        "tr",
        cell("State", mark),
        cell("Name", chip(run.name, run.colour), cls="aw-name"),
        cell("Data", data_sets.title(run.data)),
        cell("Method", f"{run.method}, rank {run.rank}"),
        cell("Loss", text.loss(run.loss)),
        cell("Exact match", match),
        cell("Speed", text.speed(run.tokens_per_second)),
        cell("When", text.when(run.created)),
        cls="pick selected" if selected else "pick",
        data_act="pick",
        data_arg=run.id,
        tabindex="0",
        aria_selected="true" if selected else "false",
    )


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
            changed = value != field.get_default()
            said = "empty" if value is None else str(shown(value))
            rows.append((label_of(field), el("strong", said) if changed else said))
    return el(
        "details",
        el("summary", "Settings; what differs from the defaults is bold"),
        facts(rows),
        cls="aw-details",
    )
