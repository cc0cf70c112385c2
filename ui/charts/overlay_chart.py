"""Curves of several runs in one chart, in the colour of each run and with different dashes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from backend import Curve
from backend import results as rs
from ui.charts.loss_chart import digits, plotly_script, thin, with_constants
from ui.components import units

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
TEMPLATE = """
<figure class="aw-chart">
  <figcaption class="aw-chart-title"></figcaption>
  <div class="aw-plot" role="img" aria-label="Loss curves, none yet"></div>
  <p class="aw-only-read"></p>
</figure>
"""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MOST_POINTS = 400
"""Most points of one curve; more would only cost time."""

Pair = tuple[rs.RunSummary, Curve]


def overlay_chart(*, elem_id: str) -> gr.HTML:
    """Make the chart; its value is what `overlay_value` returns."""
    return gr.HTML(
        overlay_value([]),
        html_template=TEMPLATE,
        js_on_load=with_constants(SCRIPT, plotly=str(plotly_script())),
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes=["aw-view"],
        label="Loss curves",
    )


def overlay_value(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return everything the chart shows, with its title and a text version."""
    styles = dashes([run.colour for run, _ in pairs])
    return {
        "title": finding([run for run, _ in pairs]),
        "said": " ".join(_sentence(run, curve) for run, curve in pairs),
        "runs": [
            {"id": run.id, "name": run.name, "colour": run.colour, "dash": dash, **_columns(curve)}
            for (run, curve), dash in zip(pairs, styles, strict=True)
        ],
    }


def dashes(colours: Sequence[str]) -> list[str]:
    """Return a dash style for each run, so that runs of the same colour differ."""
    return [DASHES[colours[:i].count(c) % len(DASHES)] for i, c in enumerate(colours)]


def finding(runs: Sequence[rs.RunSummary]) -> str:
    """Return which run is best: by held-out loss, or else training loss, if all have it."""
    if len(runs) < 2:
        return ""
    if len({run.data for run in runs}) > 1:
        return "These runs used different data, so their losses are not comparable"
    for kind, losses in (
        ("held-out loss", [run.eval_loss for run in runs]),
        ("training loss", [run.loss for run in runs]),
    ):
        known = [loss for loss in losses if loss is not None]
        if len(known) == len(runs):
            return _best(kind, runs, known)
    return "Not all of these runs have a loss yet"


def _best(kind: str, runs: Sequence[rs.RunSummary], losses: Sequence[float]) -> str:
    order = sorted(range(len(runs)), key=losses.__getitem__)
    best, next_best = order[0], order[1]
    if units.loss(losses[best]) == units.loss(losses[next_best]):
        return (
            f"{runs[best].name} and {runs[next_best].name} end with the same {kind}, "
            + units.loss(losses[best])
        )
    return (
        f"{runs[best].name} ends with the lowest {kind}: {units.loss(losses[best])}, "
        f"next is {runs[next_best].name} with {units.loss(losses[next_best])}"
    )


def _sentence(run: rs.RunSummary, curve: Curve) -> str:
    if not curve.loss:
        return f"{run.name} has no points yet."
    held_out = f", held-out loss {units.loss(curve.eval_loss[-1])}" if curve.eval_loss else ""
    return (
        f"{run.name}: training loss from {units.loss(curve.loss[0])} to "
        f"{units.loss(curve.loss[-1])} in {units.plural(curve.step[-1], 'step')}{held_out}."
    )


def _columns(curve: Curve) -> dict[str, list[Any]]:
    kept = thin(curve.loss, MOST_POINTS)
    return {
        "s": [curve.step[i] for i in kept],
        "l": [digits(curve.loss[i]) for i in kept],
        "es": curve.eval_step,
        "el": [digits(value) for value in curve.eval_loss],
    }
