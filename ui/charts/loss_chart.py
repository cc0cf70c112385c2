"""The live loss chart: the browser keeps a cursor and requests new points, at constant size.

`points` is called from the browser, so it only reads. An update contains the events after the
cursor. The whole thinned curve is sent at first, after a resume discarded points, and when a page
was inactive for long.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from backend import Curve, Event, Service, errors
from ui.charts.curve_findings import Low, finding, lowest

BASE = Path(__file__).with_name("chart_base.js").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
TEMPLATE = """
<figure class="aw-chart">
  <figcaption class="aw-chart-title"></figcaption>
  <div class="aw-plot" role="img" aria-label="Loss curve, no points yet"></div>
  <p class="aw-plot-empty"></p>
  <p class="aw-only-read"></p>
  <details class="aw-details"><summary>Learning rate</summary><div class="aw-rate"></div></details>
</figure>
"""
MOST_POINTS = 2000
"""A chart is about this many pixels wide; more points are not visible and cost time."""
MOST_NEW = 24
"""Most points in one update, so that it stays below 1 KB however fast the steps are."""
SLEPT = 200
"""More new points than this mean that the page was inactive: it gets the whole curve."""
MOST_OTHERS = 8
UNDER_WAY = frozenset({"started", "resumed", "step"})
FINAL = frozenset({"finished", "stopped", "failed", "interrupted"})


def loss_chart(service: Service, *, elem_id: str, empty: str) -> gr.HTML:
    """Make a chart; its value is what `chart_value` returns."""
    return gr.HTML(
        chart_value(None),
        html_template=TEMPLATE,
        js_on_load=with_constants(SCRIPT, plotly=str(plotly_script()), empty=empty),
        server_functions=[points_reader(service)],
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes=["aw-view"],
        label="Loss curve",
    )


def chart_value(
    run_id: str | None, colour: str = "", live: bool = False, step: int = 0
) -> dict[str, Any]:
    """Return the value with which a chart starts to poll.

    For a finished run, a changed `step` makes a page fetch points that it missed.
    """
    return {"run": run_id, "colour": colour, "live": live, "step": 0 if live else step}


def plotly_script() -> Path:
    """Return the plotly.js that is part of plotly.py: no download, works offline."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


def points_reader(service: Service) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the function that the browser calls with its cursor."""

    def points(query: dict[str, Any]) -> dict[str, Any]:
        run_id, cursor = str(query.get("run", "")), int(query.get("seq") or 0)
        try:
            events = service.events(run_id)
            whole = partial(service.curve, run_id)
            return {"run": run_id, **update(events, cursor, whole)}
        except errors.WorkbenchError:
            return {"run": run_id, "gone": True}

    return points


def update(
    events: Sequence[Event], cursor: int, whole_curve: Callable[[], Curve]
) -> dict[str, Any]:
    """Return what a chart at this cursor needs: the new points, or the whole curve."""
    fresh = [event for event in events[max(cursor - 1, 0) :] if event.seq > cursor]
    whole = cursor == 0 or _is_too_much(fresh)
    points = whole_curve() if whole else news(fresh)
    return {
        "seq": events[-1].seq if events else 0,
        "reset": whole,
        **headline(events),
        **columns(points, MOST_POINTS if whole else MOST_NEW),
    }


def news(fresh: Sequence[Event]) -> Curve:
    """Return the points of new events, which only extend a curve."""
    steps = [e for e in fresh if e.type == "step" and e.step is not None and e.loss is not None]
    tests = [
        e for e in fresh if e.type == "evaluation" and e.step is not None and e.loss is not None
    ]
    return Curve(
        step=[e.step for e in steps],
        loss=[e.loss for e in steps],
        learning_rate=[e.learning_rate or 0.0 for e in steps],
        eval_step=[e.step for e in tests],
        eval_loss=[e.loss for e in tests],
        marks=[(e.step, e.type) for e in fresh if e.is_marked and e.step is not None],
    )


def headline(events: Sequence[Event]) -> dict[str, Any]:
    """Return the title of the chart, and whether the run is over."""
    losses = [e for e in events if e.type == "step" and e.loss is not None]
    first, last = (losses[0].loss, losses[-1].loss) if losses else (None, None)
    step = (losses[-1].step or 0) if losses else 0
    over = is_over(events)
    return {"title": finding(first, last, step, not over, got_worse(events)), "over": over}


def got_worse(events: Sequence[Event]) -> Low | None:
    """Return the lowest held-out loss if the run got worse after it; else None."""
    tests: list[tuple[int, float]] = []
    for event in events:
        if event.type == "resumed":  # it discards what came after its step
            tests = [test for test in tests if test[0] <= (event.step or 0)]
        elif event.type == "data-changed":  # what was tested on before cannot be compared
            tests = []
        elif event.type == "evaluation" and event.loss is not None:
            tests.append((event.step or 0, event.loss))
    return lowest([step for step, _ in tests], [loss for _, loss in tests])


def is_over(events: Sequence[Event]) -> bool:
    """Return whether a run has ended and was not resumed."""
    last = next((e.type for e in reversed(events) if e.type in FINAL | UNDER_WAY), "")
    return last in FINAL


def _is_too_much(fresh: Sequence[Event]) -> bool:
    steps = sum(1 for event in fresh if event.type == "step")
    others = sum(1 for event in fresh if event.type == "evaluation" or event.is_marked)
    return steps > SLEPT or others > MOST_OTHERS or any(event.type == "resumed" for event in fresh)


def columns(points: Curve, most: int) -> dict[str, list[Any]]:
    """Return the points of a curve by column, thinned and rounded to what is visible."""
    kept = thin(points.loss, most)
    return {
        "s": [points.step[i] for i in kept],
        "l": [digits(points.loss[i]) for i in kept],
        "r": [digits(points.learning_rate[i], 3) for i in kept],
        "es": points.eval_step,
        "el": [digits(value) for value in points.eval_loss],
        "ms": [step for step, _ in points.marks],
        "mk": [kind for _, kind in points.marks],
    }


def thin(values: Sequence[float], most: int) -> list[int]:
    """Return the indices of at most `most` points: the minimum and maximum of each bucket."""
    n = len(values)
    if n <= most:
        return list(range(n))
    buckets = most // 2
    kept: set[int] = {0, n - 1}
    for bucket in range(1, buckets):
        span = range(n * bucket // buckets, n * (bucket + 1) // buckets)
        kept.add(min(span, key=values.__getitem__))
        kept.add(max(span, key=values.__getitem__))
    return sorted(kept)


def with_constants(script: str, **constants: str) -> str:
    """Return the shared script plus a chart's own, with constants filled in."""
    script = BASE + script
    for name, value in constants.items():
        script = script.replace(f"__{name.upper()}__", json.dumps(value))
    return script


def digits(value: float, significant: int = 4) -> float | None:
    """Round to visible digits; None for NaN and infinity, which JSON does not have."""
    return (
        float(f"{value:.{significant}g}") if value == value and abs(value) != float("inf") else None
    )
