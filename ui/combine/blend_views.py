"""What the Combine tab shows, as pure functions: likeness, readiness, results, answers."""

import itertools
from collections.abc import Mapping, Sequence

from backend import blends
from backend import requests as rq
from backend import results as rs
from ui.components import units
from ui.components.blockers import held, no_base
from ui.components.feedback import Failure, evidence, failure_card, mend_button
from ui.components.safe_view import Child, Node, button, chip, el
from ui.components.session_facts import as_named

ALIKE, APART = 0.5, 0.1
ROUNDING = 5e-6
"""A distance below this is that of 32-bit numbers, not of the method."""
Colours = Mapping[str, str]


# -- how alike -----------------------------------------------------------------------------------


def likeness(report: rs.SimilarityReport, colours: Colours, pair: tuple[int, int] | None) -> Node:
    """Draw the cosines of adapters as a heat map, and of one pair layer by layer."""
    size = range(len(report.names))
    head = el("tr", el("th", ""), *(el("th", name, scope="col") for name in report.names))
    rows = [
        el(
            "tr",
            el("th", chip(name, colours.get(name, "")), scope="row"),
            *(_cell(report, i, j, pair) for j in size),
        )
        for i, name in enumerate(report.names)
    ]
    hint = (
        "1: the same direction, 0: unrelated, -1: opposite (cosine of their weight changes). "
        "Pick a number to see it layer by layer."
    )
    return el(
        "div",
        el("h3", likeness_finding(report)),
        el(
            "div",
            el("table", el("thead", head), el("tbody", *rows), aria_label="How alike they are"),
            cls="aw-heat",
        ),
        el("p", hint, cls="aw-quiet aw-notes"),
        _layers_of_pair(report, pair) if pair else None,
    )


def likeness_finding(report: rs.SimilarityReport) -> str:
    """Say in one sentence what a likeness matrix shows."""
    pairs = list(itertools.combinations(range(len(report.names)), 2))
    i, j = max(pairs, key=lambda pair: abs(report.cosine[pair[0]][pair[1]]))
    value, first, second = report.cosine[i][j], report.names[i], report.names[j]
    most = "" if len(pairs) == 1 else "Most of all, "
    if value > ALIKE:
        return f"{most}{first} and {second} change much the same ({units.signed(value)})"
    if value > APART:
        return f"{most}{first} and {second} overlap a little ({units.signed(value)})"
    if value < -APART:
        return f"{most}{first} and {second} pull against each other ({units.signed(value)})"
    if len(pairs) > 1:
        return f"They hardly touch each other (at most {abs(value):.2f})"
    return f"{first} and {second} hardly touch each other ({units.signed(value)})"


def _cell(report: rs.SimilarityReport, i: int, j: int, pair: tuple[int, int] | None) -> Node:
    value = report.cosine[i][j]
    if i == j:
        return el("td", units.signed(value), cls="aw-heat-self")
    chosen = pair is not None and {i, j} == set(pair)
    alike = units.signed(value)
    number = button(
        alike,
        "pair",
        f"{min(i, j)},{max(i, j)}",
        kind="aw-heat-cell" + (" pressed" if chosen else ""),
        aria_label=f"{report.names[i]} and {report.names[j]}: {alike}, layer by layer",
    )
    return el("td", number, cls="aw-minus" if value < 0 else "", share=abs(value))


def _layers_of_pair(report: rs.SimilarityReport, pair: tuple[int, int]) -> Node:
    i, j = pair
    values = {layer: matrix[i][j] for layer, matrix in report.per_layer.items()}
    layer, value = max(values.items(), key=lambda item: abs(item[1]))
    title = (
        f"{report.names[i]} and {report.names[j]} by layer: "
        f"furthest from 0 in {layer_name(layer)} ({units.signed(value)})"
    )
    rows = [bar_row(layer_name(each), units.signed(v), abs(v), v < 0) for each, v in values.items()]
    return el("div", el("h3", title), bars(rows, "Cosine by layer"), cls="aw-block")


def bars(rows: list[Node], label: str) -> Node:
    """Draw rows of `bar_row` as a table: what the eye sees, a screen reader reads."""
    return el(
        "div",
        el("table", el("tbody", *rows), aria_label=label),
        cls="aw-bars",
        tabindex="0",
        role="region",
        aria_label=label,
    )


def bar_row(name: str, value: str, share: float, minus: bool = False) -> Node:
    """Describe one bar with its name and value; its length is a share of the whole width."""
    fill = el("div", cls="aw-fill aw-minus" if minus else "aw-fill", share=share)
    return el(
        "tr",
        el("th", name, scope="row"),
        el("td", el("div", fill, cls="aw-bar-track"), aria_hidden="true"),
        el("td", value, cls="aw-bar-value"),
    )


def layer_name(layer: str) -> str:
    """Shorten a layer's name to what tells it apart: "block 3, down_proj"."""
    module, block = layer.rsplit(".", 1)[-1], units.block(layer)
    return f"block {block}, {module}" if block else module


# -- before --------------------------------------------------------------------------------------


def method_line(method: rq.BlendMethod, sources: Sequence[rs.AdapterInfo]) -> Node:
    """Say what a method does, and which others are not possible for these ingredients."""
    impossible = [id for id in blends.BLENDS if sources and blends.obstacle(id, sources)]
    ranks = " and ".join(map(str, sorted({info.rank for info in sources})))
    blocked = None
    if impossible and blends.unblendable(sources) is None:
        blocked = el(
            "p",
            f"Not possible here: {', '.join(impossible)}. These need equal ranks, "
            f"and the ingredients have {ranks}.",
            cls="aw-quiet aw-notes",
        )
    return el("div", el("p", blends.BLENDS[method].summary, cls="aw-quiet"), blocked)


def left_out(adapters: Sequence[rs.AdapterInfo], *, busy: bool) -> Node:
    """Name the adapters that cannot be ingredients, and why; where it can, a click mends it."""
    out = [(info, problem) for info in adapters if (problem := blends.unfit(info))]
    return el("div", *(_unfit(info, problem, busy) for info, problem in out))


def left_out_title(names: Sequence[str]) -> str:
    """Say in one line which adapters cannot be ingredients; opened, it says why and the way out."""
    few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"Left out as they are: {few}" if len(names) > 1 else f"Left out as it is: {few}"


def can_convert(adapters: Sequence[rs.AdapterInfo]) -> bool:
    """Tell whether any adapter that cannot be an ingredient has a plain LoRA twin."""
    return any(blends.unfit(info) and blends.is_convertible(info) for info in adapters)


def _unfit(info: rs.AdapterInfo, problem: rs.Problem, busy: bool) -> Node:
    way_out = None
    if blends.is_convertible(info):
        way_out = button("Convert to plain LoRA", "convert", info.name, disabled=busy)
    said = f"{problem.what} {problem.cure} "
    return el("p", said, way_out, cls="aw-quiet aw-notes")


def readiness(
    snapshot: rs.Snapshot,
    sources: Sequence[rs.AdapterInfo],
    method: rq.BlendMethod,
    name: str,
    free_name: str,
) -> tuple[Node, bool]:
    """Say whether the blend can start, and if not, why and what mends it."""
    blocked = _blocked(snapshot, sources, method, name, free_name)
    if blocked is not None:
        return blocked, False
    return el("div", el("p", el("strong", "Ready. "), _promise(sources, method))), True


def just_made(name: str) -> Node:
    """Point to the result that has the name in the form."""
    return el("p", f"{name} is made: see below. Another name makes another blend.", cls="aw-quiet")


def _blocked(
    snapshot: rs.Snapshot,
    sources: Sequence[rs.AdapterInfo],
    method: rq.BlendMethod,
    name: str,
    free_name: str,
) -> Node | None:
    if obstacle := no_base(snapshot) or held(snapshot):
        return obstacle
    if not snapshot.adapters:
        return _mend(
            "A blend is made of adapters, and there are none yet.",
            mend_button("Train one", "go", "train"),
        )
    if not sources:
        return el("p", "Pick the adapters to blend, then give each a weight.", cls="aw-quiet")
    problem = blends.obstacle(method, sources)
    if problem is not None:
        way_out = blends.BLENDS[method].way_out
        title = blends.BLENDS[way_out].title
        return _mend(
            f"{problem.what} {problem.cure}",
            mend_button(f"Use {title}", "method", way_out) if way_out != method else None,
        )
    if free_name not in ("", name):
        return _mend(
            f"There is already an adapter called {as_named(snapshot, name)}.",
            mend_button(f"Call it {free_name}", "rename", free_name),
        )
    if snapshot.job is not None:
        return el("p", f"{snapshot.job.title} is going on; wait for it.", cls="aw-quiet")
    return None


def _promise(sources: Sequence[rs.AdapterInfo], method: rq.BlendMethod) -> str:
    ranks = [info.rank for info in sources]
    if method == "cat":
        return f"The blend is exactly the weighted sum, and its rank is {sum(ranks)}."
    if "rank" in blends.BLENDS[method].fields:
        return f"An empty rank takes the largest ingredient's, {max(ranks)}."
    return f"The blend has rank {max(ranks)}."


def _mend(sentence: str, way_out: Child) -> Node:
    return el("div", el("p", sentence), way_out, cls="aw-note warn")


# -- after ---------------------------------------------------------------------------------------


def outcome(blend: rs.Blend) -> Node:
    """Show a finished blend: how far from the exact sum, evidence, and what to do with it."""
    info = blend.adapter
    return el(
        "div",
        el("p", blend_finding(blend), cls="aw-result"),
        el("p", chip(info.name, info.colour, info.recipe)),
        el("p", _numbers(blend), cls="aw-quiet"),
        *(el("p", note, cls="aw-quiet aw-notes") for note in blend.notes),
        evidence(
            "Verified: written, read back, and answering the same "
            f"(largest difference {units.small(blend.max_difference)})."
        ),
        el(
            "div",
            button("Try it in Chat", "try", info.id, kind="main"),
            button("Keep", "keep", info.id),
            button("Discard", "discard", info.id),
            cls="aw-actions",
        ),
        distances(blend),
        cls="aw-stage",
    )


def blend_finding(blend: rs.Blend) -> str:
    """State what came out: exact, or how far from the weighted sum."""
    name = blend.adapter.name
    if blend.relative_error < ROUNDING:
        return f"{name} is exactly the weighted sum"
    return f"{name} is {units.percent(blend.relative_error)} away from the exact weighted sum"


def _numbers(blend: rs.Blend) -> str:
    seed = f", seed {blend.seed}" if "dare" in blend.adapter.recipe else ""
    size = units.count(blend.adapter.parameters)
    return f"Rank {blend.rank}{seed}, {size} numbers, made in {units.duration(blend.seconds)}."


def distances(blend: rs.Blend) -> Node:
    """Draw each layer's distance from the exact sum, folded."""
    errors = blend.relative_error_per_layer
    layer, worst = max(errors.items(), key=lambda item: item[1])
    title = f"Layer by layer: at most {distance(worst)}, in {layer_name(layer)}"
    longest = max(1.0, worst)
    rows = [bar_row(layer_name(n), distance(e), e / longest) for n, e in errors.items()]
    label = "Distance from the exact sum by layer, as a share of the sum's own size"
    return el("details", el("summary", title), bars(rows, label), cls="aw-details")


def distance(error: float) -> str:
    """Write a relative distance as a share; what is only rounding counts as 0."""
    return "0 %" if error < ROUNDING else units.percent(error)


def progress(snapshot: rs.Snapshot) -> Node:
    """Say how far a blend is."""
    job = snapshot.job
    assert job is not None
    return el("p", f"{job.title}: {job.text or 'reading the ingredients'}.", cls="aw-quiet")


def blend_failure(failure: Failure) -> Node:
    """Say why a blend failed; nothing of it was kept."""
    return failure_card(failure, title="No blend was made")


# -- answers -------------------------------------------------------------------------------------


def live_answer(mix: rq.Variant, colours: Colours, answer: str) -> Node:
    """Show the answer of a mix that is not kept."""
    who = [chip(name, colours.get(name, ""), f"{weight:g}") for name, weight in mix]
    return el("div", el("p", *who), el("p", answer or "…", cls="aw-answer"), aria_live="polite")


def answers(names: Sequence[str], colours: Colours, texts: Sequence[str]) -> Node:
    """Show the answers of the ingredients and the blend side by side."""
    columns = [
        el("div", chip(name, colours.get(name, "")), el("p", said, cls="aw-answer"))
        for name, said in zip(names, texts, strict=True)
    ]
    return el("div", *columns, cls="aw-side")
