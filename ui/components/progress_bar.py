"""The progress bar of a job."""

from backend import results as rs
from ui.components.safe_view import Node, el


def progress(job: rs.JobInfo) -> Node:
    """Draw the progress of a job."""
    known = job.fraction is not None and not job.stopping  # the time to stop is unknown
    return el(
        "div",
        el("div", cls="aw-fill", share=job.fraction or 0),
        cls="aw-progress" if known else "aw-progress unknown",
        role="progressbar",
        aria_label=job.title,
        aria_valuemin=0,
        aria_valuemax=100,
        aria_valuenow=round(100 * (job.fraction or 0)) if known else None,
    )
