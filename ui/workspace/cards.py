"""Result cards of an export, an import and a problem report."""

from backend import results as rs
from ui.components import units
from ui.components.feedback import evidence
from ui.components.safe_view import Child, Node, button, el

SHOWN = 12
"""Most entries of one list; a workspace may have hundreds."""


def going_card(title: str, doing: str, done: float | None = None) -> Node:
    """Show what is being done, its progress if known, and a Stop button."""
    known = done is not None
    share = min(max(done or 0.0, 0.0), 1.0)
    said = f"{doing}, {units.percent(share)}" if known else doing
    return el(
        "div",
        el("p", el("strong", title), f" {said}"),
        el(
            "div",
            el("div", cls="aw-fill", share=share),
            cls="aw-progress" if known else "aw-progress unknown",
            role="progressbar",
            aria_label=title,
            aria_valuemin=0,
            aria_valuemax=100,
            aria_valuenow=round(100 * share) if known else None,
        ),
        el("div", button("Stop", "stop"), cls="aw-actions"),
    )


def exported_card(exported: rs.ExportedWorkspace) -> Node:
    """Show what is in an export, where it is, and how it was verified."""
    what = f"{units.plural(exported.adapters, 'adapter')} and {units.plural(exported.runs, 'run')}"
    return _good(
        el("p", f"{what}, {units.size(exported.bytes)}, in:"),
        el("p", exported.path, cls="aw-path"),
        _listed("Left out", exported.left_out),
        evidence(f"Verified: {units.plural(exported.files, 'file')} read back and identical."),
    )


def imported_card(came: rs.ImportedWorkspace) -> Node:
    """Show what was imported, new names, what was left out, and how it was verified."""
    nothing = not (came.adapters or came.runs or came.queued or came.session)
    head = (
        "Nothing new: everything in it is already here."
        if came.already_there
        else "Nothing was imported."
    )
    what = (
        f"{units.plural(len(came.adapters), 'adapter')} and {units.plural(len(came.runs), 'run')}"
    )
    renamed = [f"{there} is now called {here}" for there, here in came.renamed]
    session = "The next start will load the base and the adapters of the other machine."
    return _good(
        el("p", el("strong", head if nothing else f"{what} imported.")),
        _listed("Adapters", came.adapters),
        _listed("Renamed, because the name is taken here", renamed),
        _listed("Added to the queue", came.queued),
        _listed("Already here", [] if nothing else came.already_there),
        _listed("Left out", came.left_out),
        _listed("Paths of imported runs that do not exist on this machine", came.missing_paths),
        el("p", session) if came.session else None,
        evidence(f"Verified: {units.plural(came.verified, 'file')} identical to the export.")
        if came.verified
        else None,
    )


def reported_card(report: rs.ReportedProblem) -> Node:
    """Show what is in a report, and that it was not sent."""
    hidden = f" Private parts were removed from {units.plural(report.hidden, 'log line')}."
    return _good(
        el("p", f"{units.plural(len(report.files), 'file')}, {units.size(report.bytes)}, in:"),
        el("p", report.path, cls="aw-path"),
        el(
            "p",
            "Versions, settings and the end of the logs, without data, names, paths or secrets."
            f"{hidden if report.hidden else ''} Nothing was sent. Check it, then attach it to "
            "your message.",
            cls="aw-quiet",
        ),
    )


def _good(*children: Child) -> Node:
    return el("div", *children, cls="aw-note good")


def _listed(title: str, lines: list[str]) -> Node | None:
    if not lines:
        return None
    more = len(lines) - SHOWN
    shown = lines[:SHOWN] if more <= 0 else [*lines[:SHOWN], f"and {more:,} more"]
    return el("div", el("p", f"{title}:"), el("ul", *(el("li", line) for line in shown)))
