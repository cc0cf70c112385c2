"""The two views that each step of a run changes: the session bar, and the run's numbers on Train.

The browser gets them with the answer to its poll and draws them itself. Redrawing a tab through
Gradio 6.31 costs ten times as much, so that is left for all other changes. Knows nothing of when
the page polls.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any

from backend import errors
from backend import results as rs
from ui.app.session_bar import bar
from ui.components.safe_view import Node
from ui.components.service_handle import ServiceHandle
from ui.train import run_progress

BAR, RUN = "session-bar", "train-run"
"""The ids of the two views' elements."""
TRAIN, RUNS = "train", "runs"
RUN_NUMBERS: dict[str, Any] = {
    "step": 0, "loss": None, "eval_loss": None, "exact_match": None, "tokens_per_second": None,
    "seconds": 0.0,
}  # fmt: skip
JOB_NUMBERS: dict[str, Any] = {"text": "", "fraction": None, "seconds_left": None}


class LiveViews:
    """Answers a page's poll: the state that its tab was drawn for, and the views that changed."""

    def __init__(self, handle: ServiceHandle) -> None:
        self._handle = handle
        self._lock = threading.Lock()
        self._version = -1
        self._outline: dict[str, Any] = {}
        self._number = 0

    def news(self, tab: str, run_id: str, shown: Mapping[str, str]) -> dict[str, Any]:
        """Return `state`, which changes when the tab needs a redraw, and the views that changed.

        `run_id` is the run that Train shows, `shown` has the mark of each view as it is drawn.
        """
        snapshot = self._handle.service.snapshot()
        marked = {name: (_mark(node), node) for name, node in self._views(snapshot, tab, run_id)}
        fresh = {
            name: {"mark": mark, "node": node}
            for name, (mark, node) in marked.items()
            if shown.get(name) != mark
        }
        # The table of runs shows the numbers of each step, too.
        state = snapshot.version if tab == RUNS else self.state(snapshot)
        return {"state": state, "views": fresh}

    def first(self) -> dict[str, Any]:
        """Return the news for a page that is just being opened, with the run that it will show."""
        run = self._handle.on_stage(self._handle.service.snapshot())
        return self.news(TRAIN, run.id if run is not None else "", {})

    def state(self, snapshot: rs.Snapshot) -> int:
        """Return a number that changes when anything but the numbers of a step changes."""
        with self._lock:
            if snapshot.version != self._version:
                self._version = snapshot.version
                now = outline(snapshot)
                if now != self._outline:
                    self._outline = now
                    self._number += 1
            return self._number

    def _views(self, snapshot: rs.Snapshot, tab: str, run_id: str) -> list[tuple[str, Node]]:
        run = next((run for run in snapshot.runs if run.id == run_id), None)
        views = [(BAR, bar(snapshot))]
        if tab == TRAIN and run is not None and run_id in _training(snapshot):
            with contextlib.suppress(errors.WorkbenchError):  # its folder may just be deleted
                events = self._handle.service.events(run_id)
                views.append((RUN, run_progress.shown(self._handle, snapshot, run, events)))
        return views


def outline(snapshot: rs.Snapshot) -> dict[str, Any]:
    """Return a snapshot's fields without the numbers that each step of a run changes."""
    training = _training(snapshot)
    return {
        **{name: value for name, value in snapshot if name not in ("version", "memory_bytes")},
        "job": _without_numbers(snapshot.job),
        "side_jobs": tuple(map(_without_numbers, snapshot.side_jobs)),
        "runs": [
            run.model_copy(update=RUN_NUMBERS) if run.id in training else run
            for run in snapshot.runs
        ],
    }


def _training(snapshot: rs.Snapshot) -> set[str]:
    """Return the ids of the runs that are going on."""
    jobs = (snapshot.job, *snapshot.side_jobs)
    return {job.run_id for job in jobs if job is not None and job.run_id is not None}


def _without_numbers(job: rs.JobInfo | None) -> rs.JobInfo | None:
    if job is None or job.run_id is None:
        return job  # other operations show their progress in their tab
    return job.model_copy(update=JOB_NUMBERS)


def _mark(node: Node) -> str:
    return hashlib.blake2b(json.dumps(node).encode(), digest_size=8).hexdigest()
