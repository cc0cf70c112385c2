"""Details of one adapter: what it changes, where it comes from, and its effect."""

from collections.abc import Sequence

from backend import results as rs
from ui.components import units
from ui.components.safe_view import Child, Node, chip, el, facts
from ui.components.tables import cell, table

VERDICTS = {
    "fits": ("good", "Fits the loaded base."),
    "warning": ("warn", "Fits, with a warning."),
    "cannot": ("bad", "Cannot be added."),
}
MATCHES = {
    "same": "the loaded base",
    "unknown": "unknown",
    "other": "another base",
    "no base": "no base is loaded",
}


def report_card(report: rs.AdapterReport) -> Node:
    """Describe an adapter before it is added: the verdict, the reasons, then its properties."""
    kind, sentence = VERDICTS[report.verdict]
    reasons = [
        el("p", reason.what, el("span", f" {reason.cure}", cls="aw-quiet") if reason.cure else None)
        for reason in report.reasons
    ]
    notes = [el("p", note, cls="aw-quiet") for note in report.notes]
    head = el("div", el("p", el("strong", sentence)), *reasons, *notes, cls=f"aw-note {kind}")
    if not report.layers:
        known = facts(read_facts(report)) if report.made_for or report.method else None
        return el("div", head, known, cls="aw-report")
    return el("div", head, facts(report_facts(report)), heat_map(report.layers), cls="aw-report")


def report_facts(report: rs.AdapterReport) -> list[tuple[str, Child]]:
    """List the properties of an adapter."""
    ranks = ", ".join(map(str, report.ranks))
    made_for = report.made_for or "not stated"
    return [
        ("Method", f"{report.method}, rank {ranks}, alpha {report.alpha:g}"),
        (
            "Changes",
            f"{units.plural(len(report.layers), 'layer')}: {', '.join(report.targets)}",
        ),
        ("Size", f"{units.count(report.parameters)} parameters, {units.size(report.bytes)}"),
        ("Made for", f"{made_for} ({MATCHES[report.base_match]})"),
        ("Effective rank", f"{report.effective_rank:.1f} of {report.rank} on average"),
        *report.lineage,
    ]


def read_facts(report: rs.AdapterReport) -> list[tuple[str, Child]]:
    """List the known properties of an adapter that cannot be added."""
    rank = f", rank {report.rank}" if report.rank else ""
    alpha = f", alpha {report.alpha:g}" if report.alpha else ""
    size = f"{units.count(report.parameters)} parameters, {units.size(report.bytes)}"
    made_for = report.made_for or "not stated"
    listed = [
        ("Method", f"{report.method}{rank}{alpha}" if report.method else ""),
        ("Changes", ", ".join(report.targets)),
        ("Size", size if report.bytes else ""),
        ("Made for", f"{made_for} ({MATCHES[report.base_match]})"),
        *report.lineage,
    ]
    return [(name, said) for name, said in listed if said]


def heat_map(layers: Sequence[rs.LayerNorm]) -> Node:
    """Draw how much each layer is changed: one row per block, one column per module.

    Darker is more; every cell also shows its number.
    """
    grid: dict[str, dict[str, rs.LayerNorm]] = {}
    for layer in layers:
        grid.setdefault(units.block(layer.layer) or "-", {})[layer.layer.rsplit(".", 1)[-1]] = layer
    modules = list(dict.fromkeys(each.layer.rsplit(".", 1)[-1] for each in layers))
    relative = all(each.relative is not None for each in layers)
    largest = max((_amount(each, relative) for each in layers), default=0.0)
    rows = [
        el(
            "tr",
            el("th", block, scope="row"),
            *(_heat_cell(row.get(module), relative, largest) for module in modules),
        )
        for block, row in grid.items()
    ]
    head = el("thead", el("tr", el("th", "Block", scope="col"), *(_head(m) for m in modules)))
    caption = el("caption", _finding(layers, relative), cls="aw-chart-title")
    unit = "in % of the layer's own weights" if relative else "as a norm (no base to compare with)"
    return el(
        "div",
        el("div", el("table", caption, head, el("tbody", *rows)), cls="aw-heat dense"),
        el("p", f"Size of the change, {unit}.", cls="aw-quiet"),
    )


def next_words(result: rs.NextTokens, names: Sequence[tuple[str, str]], *, active: bool) -> Node:
    """Show the probability of each next word for each variant, and the adapter's effect."""
    base, *others = result.chances
    shift = max((_distance(base, other) for other in others), default=0.0)
    rows = [
        el(
            "tr",
            cell("Next word", el("code", word), cls="aw-name"),
            *(
                cell(name, _bar(chances[index], colour))
                for (name, colour), chances in zip(names, result.chances, strict=True)
            ),
        )
        for index, word in enumerate(result.words)
    ]
    heads = ("Next word", *(name for name, _ in names))
    kind = "good" if shift > 1e-6 else "warn"
    return el(
        "div",
        el("div", el("p", _effect(shift, active)), cls=f"aw-note {kind}"),
        table("Probabilities of the next word", heads, rows),
    )


def _effect(shift: float, active: bool) -> str:
    """Say how much an adapter changes the next word's probabilities, and whether it is on."""
    if shift <= 1e-6:
        return "It makes no difference for this prompt: the probabilities are the same."
    size = units.chance(shift).replace("< ", "less than ").replace("> ", "more than ")
    by = size if " than " in size else f"up to {size}"
    what = f"the probabilities of the next word by {by}."
    if active:
        return f"It is on and changes {what}"
    return f"It works, but it is off now. When turned on, it will change {what}"


def title(info: rs.AdapterInfo) -> Node:
    """Return the name of the chosen adapter with its colour and origin."""
    how = info.recipe or (f"trained on {info.data}" if info.data else "")
    return el("div", chip(info.name, info.colour, how), cls="aw-column-head")


def _amount(layer: rs.LayerNorm, relative: bool) -> float:
    return (layer.relative or 0.0) * 100 if relative else layer.norm


def _head(module: str) -> Node:
    return el("th", module.replace("_proj", ""), scope="col", title=module)


def _heat_cell(layer: rs.LayerNorm | None, relative: bool, largest: float) -> Node:
    if layer is None:
        return el("td", "-", cls="aw-heat-none", title="not changed")
    amount = _amount(layer, relative)
    shown = f"{amount:.1f}" if amount >= 0.1 else f"{amount:.2g}"
    note = f"{layer.layer}: effective rank {layer.effective_rank:.1f} of {layer.rank}"
    return el("td", shown, share=amount / largest if largest else 0.0, title=note)


def _finding(layers: Sequence[rs.LayerNorm], relative: bool) -> str:
    most = max(layers, key=lambda each: _amount(each, relative))
    module = most.layer.rsplit(".", 1)[-1]
    place = f" in block {block}" if (block := units.block(most.layer)) else ""
    return f"It changes {module}{place} most"


def _distance(left: Sequence[float], right: Sequence[float]) -> float:
    return max((abs(a - b) for a, b in zip(left, right, strict=True)), default=0.0)


def _bar(chance: float, colour: str) -> Node:
    return el(
        "span",
        el("span", el("span", cls="aw-fill", share=chance, colour=colour), cls="aw-gauge"),
        el("span", units.chance(chance), cls="aw-figure"),
        cls="aw-chance",
    )
