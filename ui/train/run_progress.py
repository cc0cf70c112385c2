"""The run on the Train tab: live numbers, then results, verification and next actions."""

from typing import NamedTuple

from backend import Event, errors
from backend import results as rs
from ui.charts.curve_findings import Low
from ui.charts.loss_chart import got_worse
from ui.components import units
from ui.components.feedback import Failure, evidence, failure_card, mend_button
from ui.components.safe_view import Child, Node, button, el
from ui.components.service_handle import ServiceHandle
from ui.components.session_facts import STATES
from ui.train.data_question import data_question
from ui.train.evaluation_view import evaluation_view
from ui.train.headline import headline, neutral_line
from ui.train.launch_panel import is_waiting, launch_of, waiting_stage
from ui.train.memory_card import measured_line, retry_button
from ui.train.test_answers import strip, warning


class Live(NamedTuple):
    """The newest numbers of an active run, from its events."""

    step: int
    total_steps: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    saved: int | None = None


def shown(
    handle: ServiceHandle, snapshot: rs.Snapshot, run: rs.RunSummary | None, events: list[Event]
) -> Node:
    """Show everything about a run: progress, warnings, metrics, samples, test questions."""
    if run is None:
        return stage(None, None, None)
    adapter = next((a for a in snapshot.adapters if a.run_id == run.id), None)
    live = None
    if run.state in ("queued", "running"):
        live = live_numbers(run, events)
    diverged = run.error == errors.Diverged.__name__
    train = handle.service.runs.get(run.id).request.train
    where = stage(
        run,
        live,
        adapter,
        diverged_at=train.rate if diverged else None,
        launch=launch_of(handle, run),
    )
    before, after = (adapter.evaluation_before, adapter.evaluation) if adapter else (None, None)
    figures = evaluation_view(before, after, events) if run.state == "finished" else None
    low = got_worse(events) if run.state == "finished" and not train.keep_best else None
    bad = worse(run, low, train.rate) if low else None
    return el(
        "div",
        data_question(run),
        where,
        bad,
        warning(events),
        figures,
        strip(events, run.colour),
        data_run=run.id,
    )


def stage(
    run: rs.RunSummary | None,
    live: Live | None,
    adapter: rs.AdapterInfo | None,
    *,
    diverged_at: float | None = None,
    launch: rs.Launch | None = None,
) -> Node:
    """Show live numbers while a run is active, and its results and next actions afterwards."""
    if run is None:
        return el("div", el("p", "No run to show yet.", cls="aw-quiet"), cls="aw-stage")
    if is_waiting(run):
        return el("div", waiting_stage(run, launch), cls="aw-stage aw-ran")
    if run.state in ("queued", "running"):
        return el("div", _numbers(run, live), _pause(run, live), cls="aw-stage aw-ran")
    if run.state == "finished":
        return el("div", *_finished(run, adapter), cls="aw-stage aw-ran")
    return el("div", _ended_early(run, adapter, diverged_at), cls="aw-stage aw-ran")


def offers_next_step(run: rs.RunSummary | None) -> bool:
    """Return whether the run that is shown has the primary button of the screen."""
    return run is not None and run.state not in ("queued", "running")


def live_numbers(run: rs.RunSummary, events: list[Event]) -> Live:
    """Take the newest of each number from a run's last events."""
    steps = [event for event in events if event.type == "step"]
    if not steps:
        return Live(run.step, run.total_steps, run.loss, run.tokens_per_second, None)
    last = steps[-1]
    speeds = [event.tokens_per_second for event in steps if event.tokens_per_second]
    left = [event.seconds_left for event in steps if event.seconds_left is not None]
    saved = [event.step for event in events if event.type == "saved"]
    return Live(
        step=last.step or 0,
        total_steps=last.total_steps or run.total_steps,
        loss=last.loss,
        tokens_per_second=speeds[-1] if speeds else run.tokens_per_second,
        seconds_left=left[-1] if left else None,
        saved=saved[-1] if saved else None,
    )


def worse(run: rs.RunSummary, low: Low, rate: float) -> Node:
    """Say that the adapter was better earlier in the run, and offer fixes."""
    now, then = units.loss(low.last), units.loss(low.loss)
    slower = mend_button(f"Try with learning rate {rate / 4:.2g}", "slower", run.id)
    if low.step == 0:
        head = f"{run.name} is worse than the base model."
        said = f" Held-out loss was {then} before the first step and is {now} now."
        return el("div", el("p", el("strong", head), said), slower, cls="aw-note warn aw-warned")
    head = f"{run.name} is worse than it was after step {units.count(low.step)}."
    said = f" Held-out loss was {then} then and is {now} now."
    best = mend_button("Train again and keep the best checkpoint", "best", run.id)
    return el(
        "div",
        el("p", el("strong", head), said),
        el("div", best, slower, cls="aw-actions"),
        cls="aw-note warn aw-warned",
    )


def _numbers(run: rs.RunSummary, live: Live | None) -> Node:
    live = live or Live(run.step, run.total_steps, run.loss, run.tokens_per_second, None)
    left = units.duration(live.seconds_left) if live.seconds_left is not None else "-"
    return el(
        "div",
        _number("Step", _steps(live)),
        _number("Speed", units.speed(live.tokens_per_second)),
        _number("Time left", left),
        _number("Loss", units.loss(live.loss)),
        _number("Saved", f"step {units.count(live.saved)}" if live.saved else "not yet"),
        cls="aw-numbers",
    )


def _pause(run: rs.RunSummary, live: Live | None) -> Node | None:
    """Explain what can be done with a paused run."""
    if not run.paused:
        return None
    step = units.count(live.step if live else run.step)
    return el(
        "div",
        el("p", el("strong", f"Paused after step {step}."), " Resume, save or stop it at the top."),
        el("p", f"While it is paused, {run.name} can answer as trained so far.", cls="aw-quiet"),
        button("Try it half-trained", "try", run.adapter_id),
        cls="aw-note wait aw-paused",
    )


def _number(name: str, value: str) -> Node:
    return el("div", el("span", name, cls="aw-quiet"), el("strong", value))


def _finished(run: rs.RunSummary, adapter: rs.AdapterInfo | None) -> list[Child]:
    before, after = (adapter.evaluation_before, adapter.evaluation) if adapter else (None, None)
    facts = f"{units.plural(run.step, 'step')} in {units.duration(run.seconds)}"
    difference = adapter.max_difference if adapter else None
    verified = difference is not None and (
        "Verified: the saved adapter gives the same answers when it is loaded again "
        f"(largest difference {units.small(difference)})."
    )
    return [
        el("p", headline(run, before, after), cls="aw-result"),
        neutral_line(run),
        _ending(run),
        evidence(verified) if verified else None,
        el("p", f"{run.name}: {facts}, {units.speed(run.tokens_per_second)}.", cls="aw-quiet"),
        measured_line(run),
        el("p", run.preparation, cls="aw-quiet") if run.preparation else None,
        el("p", run.layout_note, cls="aw-quiet") if run.layout_note else None,
        el(
            "div",
            button("Try it in Chat", "try", adapter.id, kind="main") if adapter else None,
            None
            if run.launched or run.not_extendable
            else button("Train longer", "longer", run.id),
            button("Use in a blend", "blend", adapter.id) if adapter else None,
            button("Start another", "another", run.id, kind="" if adapter else "main"),
            cls="aw-actions",
        ),
    ]


def _ending(run: rs.RunSummary) -> Node | None:
    """Return how a run ended if it did not simply reach its last step."""
    plain = ("", f"Finished after {run.step:,} steps.")
    return None if run.message in plain else el("p", run.message)


def _ended_early(
    run: rs.RunSummary, adapter: rs.AdapterInfo | None, diverged_at: float | None
) -> Node:
    kept = ", and its last checkpoint is kept" if run.resumable else ""
    where = f"It reached step {units.count(run.step)} of {units.count(run.total_steps)}{kept}."
    mend = el(
        "div",
        _mend(run, diverged_at),
        button("Try it in Chat", "try", adapter.id) if adapter else None,
        button("Start another", "another", run.id),
        cls="aw-actions",
    )
    cure = f"{run.cure} {where}" if run.state == "failed" and run.message and run.step else run.cure
    failure = Failure(run.message or where, cure, asked=run.state == "stopped")
    return failure_card(failure, mend, f"{run.name}: {STATES[run.state].lower()}")


def _mend(run: rs.RunSummary, diverged_at: float | None) -> Node:
    if diverged_at is not None:
        return mend_button(f"Try with learning rate {diverged_at / 4:.2g}", "slower", run.id)
    if (retry := retry_button(run)) is not None:
        return retry
    if run.resumable:
        return mend_button("Resume", "resume", run.id)
    return mend_button("Try again", "again", run.id)


def _steps(live: Live) -> str:
    if not live.total_steps:
        return "preparing"
    return f"{units.count(live.step)} of {units.count(live.total_steps)}"
