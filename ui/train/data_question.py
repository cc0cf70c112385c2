"""The question of a run whose data has changed: go on with the data as it is now, or not."""

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.components.feedback import mend_button, refuse
from ui.components.safe_view import Node, button, el
from ui.components.service_handle import ServiceHandle

RESUME, GO_ON, LEAVE = ACTS = ("resume", "go-on", "leave")


def data_question(run: rs.RunSummary) -> Node | None:
    """Say what has changed and ask; None where there is no question."""
    change = run.data_change
    if change is None or run.state in ("queued", "running"):
        return None
    doing = "extended" if change.extra_epochs else "resumed"
    rest = "added epochs" if change.extra_epochs else "epochs that remain"
    return el(
        "div",
        el("p", el("strong", f"{run.name} was not {doing}. "), change.what),
        el(
            "p",
            f"Go on with the data as it is now? Then the {rest} begin at its start. The curve "
            "breaks at this step, and the run can no longer be repeated from its settings. Or "
            "bring back the data as it was, and try again.",
            cls="aw-quiet",
        ),
        el(
            "div",
            mend_button("Go on with the new data", GO_ON, run.id),
            button("Leave the run as it is", LEAVE, run.id),
            cls="aw-actions",
        ),
        cls="aw-note warn aw-warned",
    )


def decide(handle: ServiceHandle, act: str, run_id: str) -> None:
    """Resume a run, go on with its changed data, or leave it; shows an error on failure."""
    try:
        if act == LEAVE:
            handle.service.leave_data_question(run_id)
        elif act == GO_ON:
            change = handle.service.runs.get(run_id).known_status().data_change
            extra = change.extra_epochs if change is not None else 0.0
            handle.start(rq.Resume(run_id=run_id, extra_epochs=extra, changed_data=True))
        else:
            handle.start(rq.Resume(run_id=run_id))
    except errors.WorkbenchError as error:
        refuse("Cannot resume", error)
