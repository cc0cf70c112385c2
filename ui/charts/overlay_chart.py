"""Curves of several runs in one chart: each in its run's own colour, told apart by dashes too."""

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
"""A curve is drawn at once with all others; more points would only cost time."""

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
    """Return everything the chart shows, title and text twin included."""
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
    """Return a dash for each run, so that runs of one colour differ."""
    return [DASHES[colours[:i].count(c) % len(DASHES)] for i, c in enumerate(colours)]


def finding(runs: Sequence[rs.RunSummary]) -> str:
    """State which run came out best, on the fairest number that all of them have."""
    if len(runs) < 2:
        return ""
    if len({run.data for run in runs}) > 1:
        return "These runs learned different data, so their losses do not compare"
    for kind, losses in (
        ("held-out loss", [run.eval_loss for run in runs]),
        ("training loss", [run.loss for run in runs]),
    ):
        known = [loss for loss in losses if loss is not None]
        if len(known) == len(runs):
            return _best(kind, runs, known)
    return "Not all of these runs have come to a loss yet"


def _best(kind: str, runs: Sequence[rs.RunSummary], losses: Sequence[float]) -> str:
    order = sorted(range(len(runs)), key=losses.__getitem__)
    best, next_best = order[0], order[1]
    if units.loss(losses[best]) == units.loss(losses[next_best]):
        return (
            f"{runs[best].name} and {runs[next_best].name} end at the same {kind}, "
            + units.loss(losses[best])
        )
    return (
        f"{runs[best].name} ends at the lowest {kind}: {units.loss(losses[best])}, "
        f"next is {runs[next_best].name} at {units.loss(losses[next_best])}"
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
