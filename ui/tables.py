"""The tables of adapters and runs and one run's facts, as trees for `safe_view`."""

from collections.abc import Collection, Sequence

from backend import CHAT_TEMPLATES
from backend import results as rs
from ui import data_sets, text
from ui.safe_view import Child, Node, button, chip, el, facts
from ui.view import state_word

MARKS = {
    "queued": "wait",
    "running": "run",
    "finished": "good",
    "stopped": "wait",
    "failed": "bad",
    "interrupted": "bad",
    "damaged": "bad",
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
        ("Precision", _precision(base)),
        *([("Quantised", base.quantization_note)] if base.quantization_note else []),
        ("Device", base.device),
        ("Memory", f"{text.size(measured)} measured, {text.size(predicted)} predicted"),
        *([("Saved", f"{text.size(base.bytes_saved)} by quantising")] if base.bytes_saved else []),
        ("Context length", text.plural(base.context_length, "token")),
        ("Vocabulary", text.plural(base.vocabulary, "token")),
        ("Chat template", _template(base)),
        ("Loaded in", text.duration(base.seconds)),
        ("From", el("span", base.path, cls="aw-path")),
    ]
    return facts(pairs)


def _template(base: rs.ModelFacts) -> str:
    if base.given_template != "own":
        return f"{CHAT_TEMPLATES[base.given_template].title}, given to it"
    if base.chat_template:
        return "its own"
    return "none: plain text is continued. Advanced, Chat template gives it one."


# -- runs ----------------------------------------------------------------------------------------

RUN_HEADS = ("Compare", "State", "Name", "Data", "Method", "Loss", "Exact match", "Speed", "When")


def run_table(runs: Sequence[rs.RunSummary], selected: str, ticked: Collection[str] = ()) -> Node:
    """List runs, newest first; a row can be picked, and ticked to be compared."""
    if not runs:
        return el("p", "No runs here.", cls="aw-quiet aw-empty")
    return table(
        "Runs",
        RUN_HEADS,
        [_run_row(run, selected=run.id == selected, ticked=run.id in ticked) for run in runs],
    )


def filtered(runs: Sequence[rs.RunSummary], words: str, state: str) -> list[rs.RunSummary]:
    """Return the runs in which every word occurs, in the wanted state."""
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
    """Say a run's state, with a mark that is not only a colour."""
    mark = "paused" if run.paused else MARKS[run.state]
    return el("span", state_word(run), cls=f"aw-state {mark}")


def _run_row(run: rs.RunSummary, *, selected: bool, ticked: bool) -> Node:
    match = text.percent(run.exact_match) if run.exact_match is not None else "-"
    return el(
        "tr",
        cell("Compare", "-" if run.state == "damaged" else _tick(run, ticked)),
        cell("State", run_state(run)),
        cell("Name", chip(run.name, run.colour), cls="aw-name"),
        cell("Data", data_sets.title(run.data) if run.data else "-"),
        cell("Method", f"{run.method}, rank {run.rank}" if run.method else "-"),
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


def queue_list(queue: Sequence[rs.QueuedRun]) -> Node:
    """List what waits its turn, first come first; nothing where nothing waits."""
    if not queue:
        return el("div")
    rows = [_queued_row(number, each) for number, each in enumerate(queue, 1)]
    return el(
        "div",
        el("h3", f"{text.plural(len(queue), 'run')} waiting"),
        table("Waiting their turn", ("Turn", "Name", "Data", "Method", "Since", ""), rows),
        cls="aw-queue",
    )


def _queued_row(number: int, each: rs.QueuedRun) -> Node:
    waits = f"waits for {each.waits_for}" if each.waits_for else ""
    return el(
        "tr",
        cell("Turn", str(number)),
        cell("Name", el("strong", each.name), el("span", f" {waits}", cls="aw-quiet"),
             cls="aw-name"),
        cell("Data", data_sets.title(each.data)),
        cell("Method", f"{each.method}, rank {each.rank}"),
        cell("Since", text.when(each.added)),
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
        aria_label=f"Compare {run.name} of {text.when(run.created)}",
    )


def _precision(base: rs.ModelFacts) -> str:
    """Say how weights are stored; of a quantised base, those that are not quantised."""
    if base.quantization != "none":
        return f"{base.precision}, of what is not quantised"
    return f"{base.precision}: {base.precision_reason}"
