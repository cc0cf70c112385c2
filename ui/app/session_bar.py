"""The bar at the top of every tab: base, active adapters, memory, and running jobs."""

from backend import results as rs
from ui.components import units
from ui.components.progress_bar import progress
from ui.components.safe_view import Child, Node, button, chip, el
from ui.components.session_facts import BASE_COLOUR, PHASES


def bar(snapshot: rs.Snapshot) -> Node:
    """Draw the session bar."""
    return el(
        "div",
        el(
            "div",
            el("span", "Adapter Workbench", cls="aw-brand"),
            _part("Base", _base(snapshot.base), "load", _about_base(snapshot.base)),
            _part("On", _active(snapshot), "load", "Go to Load to switch adapters"),
            _memory(snapshot),
            _phase(snapshot),
            cls="aw-bar-parts",
        ),
        el("div", _now(snapshot), cls="aw-bar-now"),
        cls="aw-bar",
    )


def _part(name: str, value: Child, tab: str, title: str) -> Node:
    return el(
        "button",
        el("span", name, cls="aw-quiet"),
        value,
        cls="aw-bar-part",
        data_act="go",
        data_arg=tab,
        title=title,
    )


def _about_base(base: rs.ModelFacts | None) -> str:
    """Return what the base's part shows when it is pointed at, with the notes about its files."""
    change = "Go to Load to change the base model"
    notes = base.notes if base is not None else ()
    return f"{' '.join(notes)} {change}." if notes else change


def _base(base: rs.ModelFacts | None) -> Node:
    if base is None:
        return el("span", "none", cls="aw-quiet")
    kept = base.precision if base.quantization == "none" else base.quantization
    size = f"{units.short_count(base.parameters)}, {kept}"
    return chip(units.shorten(base.name, 32), BASE_COLOUR, size)


def _active(snapshot: rs.Snapshot) -> Node:
    colours = {adapter.name: adapter.colour for adapter in snapshot.adapters}
    if not snapshot.active:
        return el("span", "base only" if snapshot.base else "nothing", cls="aw-quiet")
    return el("span", *(chip(name, colours.get(name, BASE_COLOUR)) for name, _ in snapshot.active))


def _memory(snapshot: rs.Snapshot) -> Node:
    used, total = snapshot.memory_bytes, snapshot.memory_total_bytes
    return el(
        "div",
        el("span", "Memory", cls="aw-quiet"),
        el("span", f"{units.size(used)} of {units.size(total)}", cls="aw-figure"),
        el("div", el("div", cls="aw-fill", share=used / total if total else 0), cls="aw-gauge"),
        cls="aw-bar-memory",
        title="Memory that the model process uses",
    )


def _phase(snapshot: rs.Snapshot) -> Node:
    word = PHASES.get(snapshot.phase, snapshot.phase.capitalize())
    return el(
        "span",
        el("span", cls="aw-dot", aria_hidden="true"),
        word,
        cls=f"aw-phase {snapshot.phase}",
        role="status",
    )


def _now(snapshot: rs.Snapshot) -> Node:
    jobs = [_job(snapshot.job)] if snapshot.job is not None else []
    jobs += [_job(job, f"stop-side:{job.id}") for job in snapshot.side_jobs]
    notice = snapshot.notice
    said = el("p", cls="aw-notice")
    if notice is not None:
        said = el("p", notice.text, cls=f"aw-notice {notice.kind}", role="status")
    if snapshot.phase == "down":
        return el("div", said, button("Start again", "restart"), cls="aw-jobs")
    if not jobs:
        return said
    trouble = said if notice is not None and notice.kind == "bad" else None
    return el("div", *jobs, trouble, cls="aw-jobs")  # errors are shown even while jobs run


def _job(job: rs.JobInfo, act: str = "stop") -> Node:
    known = job.fraction is not None and not job.stopping
    left = f"{units.duration(job.seconds_left)} left" if job.seconds_left is not None else None
    return el(
        "div",
        el("span", job.title, cls="aw-job-title"),
        progress(job),
        el("span", units.percent(job.fraction or 0) if known else "", cls="aw-figure"),
        el("span", _what_now(job, left), cls="aw-quiet"),
        el(
            "span",
            *_steering(job, apart=act != "stop"),
            button("Stop now" if job.stopping else "Stop", *act.split(":"), kind="stop"),
            cls="aw-job-buttons",
        ),
        cls="aw-job",
    )


def _steering(job: rs.JobInfo, *, apart: bool) -> list[Node]:
    """Return the buttons of an active run; a run with separate processes cannot pause."""
    if job.run_id is None or job.stopping:
        return []
    save = button("Save now", "save-now")
    if apart:
        return [save]
    waits = job.paused or job.pausing
    return [button("Resume", "unpause") if waits else button("Pause", "pause"), save]


def _what_now(job: rs.JobInfo, left: str | None) -> str:
    if job.stopping:
        return "Stopping: finishing the step, then saving" if job.run_id else "Stopping"
    if job.paused:
        return f"Paused. {job.answering}" if job.answering else "Paused. You can ask it in Chat."
    if job.pausing:
        return "Pausing: finishing the step"
    return left or job.text
