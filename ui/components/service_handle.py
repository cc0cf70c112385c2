"""What the page's handlers share: the service, and the last job of each operation.

All browser tabs share one session, so there is one handle per app, not per visitor.
"""

import time
from collections.abc import Collection
from typing import Any

from gradio.blocks import Block

from backend import Caller, Job, Service, errors
from backend import requests as rq
from backend import results as rs
from ui.components.caller import caller
from ui.components.feedback import Failure, explain


class ServiceHandle:
    """The service with the page's permissions, and the last job of each operation."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.opened = time.time()
        self.version = 0
        """Increased for changes that the page must draw although the session did not change."""
        self._last: dict[str, Job] = {}
        self._asked: dict[str, rq.Request] = {}
        self._for_owner: dict[Block, dict[str, Any]] = {}

    def start(self, request: rq.Request) -> Job:
        """Start an operation for the page and remember its job."""
        job = self.service.start(request, caller=self.caller)
        self._last[job.operation] = job
        self._asked[job.operation] = request
        return job

    def enqueue(self, train: rq.Train) -> rs.QueuedRun:
        """Add a run to the queue."""
        return self.service.enqueue(train, caller=self.caller)

    def convert(self, name: str, rank: int | None = None) -> Job:
        """Start converting an adapter into a plain LoRA copy with a free name."""
        new_name = self.free_name(f"{name[:34]} plain")
        return self.start(rq.ConvertAdapter(name=name, new_name=new_name, rank=rank))

    def adapter(self, adapter_id: str) -> rs.AdapterInfo | None:
        """Return the current state of the adapter with this id; None if it is gone.

        By id, because a name on the screen may belong to another adapter when it is clicked.
        """
        return next((a for a in self.service.library.all() if a.id == adapter_id), None)

    def require_adapter(self, adapter_id: str) -> rs.AdapterInfo:
        """Return the current state of the adapter with this id; raises NotFound."""
        info = self.adapter(adapter_id)
        if info is None:
            raise errors.NotFound(
                "This adapter is no longer in the library.",
                cure="Undo on the Load tab restores deleted adapters.",
            )
        return info

    @property
    def caller(self) -> Caller:
        """The caller of the current handler."""
        return caller(self.service.settings)

    @property
    def demo(self) -> bool:
        """Whether the limits of a demo apply to the current caller."""
        return self.service.settings.demo and self.caller != "owner"

    def keep_for_owner(self, *parts: Block, **opened: Any) -> None:
        """Register components that a demo restricts, with their properties for its owner."""
        for part in parts:
            self._for_owner[part] = opened

    @property
    def kept_for_owner(self) -> list[Block]:
        """The components that look different for the owner of a demo."""
        return list(self._for_owner)

    def open_to_owner(self) -> dict[Block, dict[str, Any]]:
        """Return their properties for the owner, if the owner of a demo is the caller."""
        return {} if self.demo or not self.service.settings.demo else self._for_owner

    def last(self, operation: str, request: rq.Request | None = None) -> Job | None:
        """Return the last job of an operation; with `request`, only if it was for that request."""
        wanted = request is None or self._asked.get(operation) == request
        return self._last.get(operation) if wanted else None

    def forget_failure(self, operation: str) -> None:
        """Forget the last job of an operation if it failed, so that its error disappears."""
        if self.failure(operation) is not None:
            del self._last[operation]

    def forget(self, operation: str) -> None:
        """Forget the last job of an operation, so that its result disappears."""
        self._last.pop(operation, None)

    def asked(self, operation: str) -> rq.Request | None:
        """Return the last request of an operation."""
        return self._asked.get(operation)

    def failure(self, operation: str) -> Failure | None:
        """Return the error of the last job of an operation, if it failed."""
        job = self._last.get(operation)
        error = error_of(job) if job is not None else None
        return explain(error) if error is not None else None

    def last_failure(self, *operations: str) -> Failure | None:
        """Return the error of the newest job of several operations, if that one failed."""
        jobs = [job for each in operations if (job := self._last.get(each))]
        newest = max(jobs, key=lambda job: job.id, default=None)
        return self.failure(newest.operation) if newest is not None else None

    def outcome(self, operation: str) -> Any:
        """Return the result of the last job of an operation, if it succeeded."""
        job = self._last.get(operation)
        if job is None or not job.done() or error_of(job) is not None:
            return None
        return job.result(timeout=0)

    def on_stage(
        self, snapshot: rs.Snapshot, dismissed: Collection[str] = ()
    ) -> rs.RunSummary | None:
        """Return the run that Train shows: the last one that was started or resumed.

        Runs that finished before the app was opened, and damaged runs, are shown only in Runs.
        """
        shown = (each for each in snapshot.runs if each.state != "damaged")
        run = max(shown, key=lambda each: each.begun, default=None)
        if run is None or run.id in dismissed:
            return None
        old = run.begun < self.opened and run.state == "finished"
        return None if old else run

    def free_name(self, wanted: str) -> str:
        """Return a name that no adapter has: the wanted one if possible."""
        return self.service.free_name(wanted)


def error_of(job: Job) -> errors.WorkbenchError | None:
    """Return the error of a job, if it failed."""
    if not job.done():
        return None
    try:
        job.result(timeout=0)
    except errors.WorkbenchError as error:
        return error
    return None
