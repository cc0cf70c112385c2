"""What the Combine tab shows, as pure functions: similarity, readiness, results, answers."""

import itertools
from collections.abc import Mapping, Sequence

from backend import blends
from backend import requests as rq
from backend import results as rs
from ui.components import units
from ui.components.blockers import held, no_base, under_way
from ui.components.feedback import Failure, evidence, failure_card, mend_button
from ui.components.safe_view import Child, Node, button, chip, el
from ui.components.session_facts import as_named

ALIKE, APART = 0.5, 0.1
ROUNDING = 5e-6
"""A distance below this is float32 rounding, not an error of the method."""
Colours = Mapping[str, str]


# -- how alike -----------------------------------------------------------------------------------


def likeness(report: rs.SimilarityReport, colours: Colours, pair: tuple[int, int] | None) -> Node:
    """Draw the cosine similarity of adapters as a heat map, and one pair layer by layer."""
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
        "Click a number to see it layer by layer."
    )
    return el(
        "div",
        el("h3", likeness_finding(report)),
        el(
            "div",
            el("table", el("thead", head), el("tbody", *rows), aria_label="Similarity"),
            cls="aw-heat",
        ),
        el("p", hint, cls="aw-quiet aw-notes"),
        _layers_of_pair(report, pair) if pair else None,
    )


def likeness_finding(report: rs.SimilarityReport) -> str:
    """Return the main finding of a similarity matrix."""
    pairs = list(itertools.combinations(range(len(report.names)), 2))
    i, j = max(pairs, key=lambda pair: abs(report.cosine[pair[0]][pair[1]]))
    value, first, second = report.cosine[i][j], report.names[i], report.names[j]
    most = "" if len(pairs) == 1 else "Largest: "
    if value > ALIKE:
        return f"{most}{first} and {second} make very similar changes ({units.signed(value)})"
    if value > APART:
        return f"{most}{first} and {second} overlap a little ({units.signed(value)})"
    if value < -APART:
        return f"{most}{first} and {second} make opposite changes ({units.signed(value)})"
    if len(pairs) > 1:
        return f"They are almost unrelated (at most {abs(value):.2f})"
    return f"{first} and {second} are almost unrelated ({units.signed(value)})"


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
    """Draw rows of `bar_row` as a table, so that screen readers can read it."""
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
    """Shorten a layer's name: "block 3, down_proj"."""
    module, block = layer.rsplit(".", 1)[-1], units.block(layer)
    return f"block {block}, {module}" if block else module


# -- before --------------------------------------------------------------------------------------


def method_line(method: rq.BlendMethod, sources: Sequence[rs.AdapterInfo]) -> Node:
    """Describe a method, and list the methods that these ingredients do not allow."""
    impossible = [id for id in blends.BLENDS if sources and blends.obstacle(id, sources)]
    ranks = " and ".join(map(str, sorted({info.rank for info in sources})))
    blocked = None
    if impossible and blends.unblendable(sources) is None:
        blocked = el(
            "p",
            f"Not possible here: {', '.join(impossible)}. They need equal ranks, "
            f"and the ingredients have {ranks}.",
            cls="aw-quiet aw-notes",
        )
    return el("div", el("p", blends.BLENDS[method].summary, cls="aw-quiet"), blocked)


def left_out(adapters: Sequence[rs.AdapterInfo], *, busy: bool) -> Node:
    """List the adapters that cannot be ingredients, each with the reason and a fix if any."""
    out = [(info, problem) for info in adapters if (problem := blends.unfit(info))]
    return el("div", *(_unfit(info, problem, busy) for info, problem in out))


def left_out_title(names: Sequence[str]) -> str:
    """Return the title of the collapsed list of adapters that cannot be ingredients."""
    few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"Cannot be blended: {few}"


def can_convert(adapters: Sequence[rs.AdapterInfo]) -> bool:
    """Return whether any adapter that cannot be an ingredient can be converted to plain LoRA."""
    return any(blends.unfit(info) and blends.is_convertible(info) for info in adapters)


def _unfit(info: rs.AdapterInfo, problem: rs.Problem, busy: bool) -> Node:
    convert = None
    if blends.is_convertible(info):
        convert = button("Convert to plain LoRA", "convert", info.name, disabled=busy)
    said = f"{problem.what} {problem.cure} "
    return el("p", said, convert, cls="aw-quiet aw-notes")


def readiness(
    snapshot: rs.Snapshot,
    sources: Sequence[rs.AdapterInfo],
    method: rq.BlendMethod,
    name: str,
    free_name: str,
) -> tuple[Node, bool]:
    """Return whether the blend can start, and if not, the reason and a fix."""
    blocked = _blocked(snapshot, sources, method, name, free_name)
    if blocked is not None:
        return blocked, False
    return el("div", el("p", el("strong", "Ready. "), _promise(sources, method))), True


def just_made(name: str) -> Node:
    """Say that the blend with the name in the form was created."""
    return el(
        "p", f"{name} was created (below). Change the name to create another.", cls="aw-quiet"
    )


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
            "There are no adapters to blend yet.",
            mend_button("Train one", "go", "train"),
        )
    if not sources:
        return el("p", "Choose the adapters to blend, then set the weight of each.", cls="aw-quiet")
    problem = blends.obstacle(method, sources)
    if problem is not None:
        other = blends.BLENDS[method].way_out
        title = blends.BLENDS[other].title
        return _mend(
            f"{problem.what} {problem.cure}",
            mend_button(f"Use {title}", "method", other) if other != method else None,
        )
    if free_name not in ("", name):
        return _mend(
            f"There is already an adapter called {as_named(snapshot, name)}.",
            mend_button(f"Call it {free_name}", "rename", free_name),
        )
    if snapshot.job is not None:
        return el("p", f"{under_way(snapshot.job)}. Wait for it.", cls="aw-quiet")
    return None


def _promise(sources: Sequence[rs.AdapterInfo], method: rq.BlendMethod) -> str:
    ranks = [info.rank for info in sources]
    if method == "cat":
        return f"The blend is exactly the weighted sum, and its rank is {sum(ranks)}."
    if "rank" in blends.BLENDS[method].fields:
        return f"If Rank is empty, the blend has the largest rank of its ingredients, {max(ranks)}."
    return f"The blend has rank {max(ranks)}."


def _mend(sentence: str, fix: Child) -> Node:
    return el("div", el("p", sentence), fix, cls="aw-note warn")


# -- after ---------------------------------------------------------------------------------------


def outcome(blend: rs.Blend) -> Node:
    """Show a finished blend: its distance from the exact sum, verification, and actions."""
    info = blend.adapter
    return el(
        "div",
        el("p", blend_finding(blend), cls="aw-result"),
        el("p", chip(info.name, info.colour, info.recipe)),
        el("p", _numbers(blend), cls="aw-quiet"),
        *(el("p", note, cls="aw-quiet aw-notes") for note in blend.notes),
        evidence(
            "Verified: the saved blend gives the same answers when it is loaded "
            f"(largest difference {units.small(blend.max_difference)})."
        ),
        el(
            "div",
            button("Try it in Chat", "try", info.id, kind="main"),
            button("Keep it", "keep", info.id),
            button("Discard", "discard", info.id),
            cls="aw-actions",
        ),
        distances(blend) if blend.relative_error >= ROUNDING else None,
        cls="aw-stage",
    )


def blend_finding(blend: rs.Blend) -> str:
    """Return the main finding: exact, or the distance from the weighted sum."""
    name = blend.adapter.name
    if blend.relative_error < ROUNDING:
        return f"{name} is exactly the weighted sum"
    return f"{name} is {units.percent(blend.relative_error)} away from the exact weighted sum"


def _numbers(blend: rs.Blend) -> str:
    seed = f", seed {blend.seed}" if "dare" in blend.adapter.recipe else ""
    size = units.count(blend.adapter.parameters)
    return f"Rank {blend.rank}{seed}, {size} parameters, made in {units.duration(blend.seconds)}."


def distances(blend: rs.Blend) -> Node:
    """Draw each layer's distance from the exact sum, collapsed."""
    errors = blend.relative_error_per_layer
    layer, worst = max(errors.items(), key=lambda item: item[1])
    title = f"Layer by layer: at most {distance(worst)}, in {layer_name(layer)}"
    longest = max(1.0, worst)
    rows = [bar_row(layer_name(n), distance(e), e / longest) for n, e in errors.items()]
    label = "Distance from the exact sum by layer, as a share of the sum's own size"
    return el("details", el("summary", title), bars(rows, label), cls="aw-details")


def distance(error: float) -> str:
    """Write a relative distance as a share; rounding errors count as 0."""
    return "0 %" if error < ROUNDING else units.percent(error)


def progress(snapshot: rs.Snapshot) -> Node:
    """Show the progress of a blend."""
    job = snapshot.job
    assert job is not None
    return el("p", f"{job.title}: {job.text or 'reading the ingredients'}.", cls="aw-quiet")


def blend_failure(failure: Failure) -> Node:
    """Show why a blend failed; nothing of it was saved."""
    return failure_card(failure, title="No blend was made")


# -- answers -------------------------------------------------------------------------------------


def live_answer(mix: rq.Variant, colours: Colours, answer: str) -> Node:
    """Show the answer of a mix that is not saved."""
    who = [chip(name, colours.get(name, ""), f"{weight:g}") for name, weight in mix]
    return el("div", el("p", *who), el("p", answer or "…", cls="aw-answer"), aria_live="polite")


def answers(names: Sequence[str], colours: Colours, texts: Sequence[str]) -> Node:
    """Show the answers of the ingredients and the blend side by side."""
    columns = [
        el("div", chip(name, colours.get(name, "")), el("p", said, cls="aw-answer"))
        for name, said in zip(names, texts, strict=True)
    ]
    return el("div", *columns, cls="aw-side")
