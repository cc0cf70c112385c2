"""What the page's handlers share: the service, and the jobs that the page last asked of it.

All browser tabs look at the same session, so this is one object per app, not per visitor.
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
    """The service as the page uses it: as a caller that may touch only what the page may."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.opened = time.time()
        self.version = 0
        """Counts what the page must draw though nothing happened in the session."""
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
        """Let a training wait its turn."""
        return self.service.enqueue(train, caller=self.caller)

    def convert(self, name: str, rank: int | None = None) -> Job:
        """Start making a plain LoRA twin of an adapter, under a free name."""
        new_name = self.free_name(f"{name[:34]} plain")
        return self.start(rq.ConvertAdapter(name=name, new_name=new_name, rank=rank))

    def adapter(self, adapter_id: str) -> rs.AdapterInfo | None:
        """Return the adapter with this id as it is now, whatever it is called; None if it is gone.

        A name on the screen may have gone to another adapter by the time it is clicked.
        """
        return next((a for a in self.service.library.all() if a.id == adapter_id), None)

    def require_adapter(self, adapter_id: str) -> rs.AdapterInfo:
        """Return the adapter with this id as it is now; raises NotFound."""
        info = self.adapter(adapter_id)
        if info is None:
            raise errors.NotFound(
                "This adapter is no longer in the library.",
                cure="Undo on the Load tab brings back what was deleted.",
            )
        return info

    @property
    def caller(self) -> Caller:
        """In whose name the handler that is running now acts."""
        return caller(self.service.settings)

    @property
    def demo(self) -> bool:
        """Whether the limits of a demo hold for whoever is asking now."""
        return self.service.settings.demo and self.caller != "owner"

    def keep_for_owner(self, *parts: Block, **opened: Any) -> None:
        """Note what a shared demo shows closed, and how it looks for its signed-in owner."""
        for part in parts:
            self._for_owner[part] = opened

    @property
    def kept_for_owner(self) -> list[Block]:
        """The components that look otherwise for the owner of a demo."""
        return list(self._for_owner)

    def open_to_owner(self) -> dict[Block, dict[str, Any]]:
        """Return the properties that open them, if the owner of a demo is asking."""
        return {} if self.demo or not self.service.settings.demo else self._for_owner

    def last(self, operation: str, request: rq.Request | None = None) -> Job | None:
        """Return the job of the last such operation; only if it is of this request, where given."""
        wanted = request is None or self._asked.get(operation) == request
        return self._last.get(operation) if wanted else None

    def forget_failure(self, operation: str) -> None:
        """Let go of a job that failed, so that it is no longer shown."""
        if self.failure(operation) is not None:
            del self._last[operation]

    def forget(self, operation: str) -> None:
        """Let go of the last such job, so that nothing more is said of it."""
        self._last.pop(operation, None)

    def asked(self, operation: str) -> rq.Request | None:
        """Return what the last such operation was asked to do."""
        return self._asked.get(operation)

    def failure(self, operation: str) -> Failure | None:
        """Return why the last such operation failed, if it did."""
        job = self._last.get(operation)
        error = error_of(job) if job is not None else None
        return explain(error) if error is not None else None

    def last_failure(self, *operations: str) -> Failure | None:
        """Return why the last of several operations failed, if it was the one that did."""
        jobs = [job for each in operations if (job := self._last.get(each))]
        newest = max(jobs, key=lambda job: job.id, default=None)
        return self.failure(newest.operation) if newest is not None else None

    def outcome(self, operation: str) -> Any:
        """Return what the last such operation came to, if it ended well."""
        job = self._last.get(operation)
        if job is None or not job.done() or error_of(job) is not None:
            return None
        return job.result(timeout=0)

    def on_stage(
        self, snapshot: rs.Snapshot, dismissed: Collection[str] = ()
    ) -> rs.RunSummary | None:
        """Return the run that Train shows: the one that was last started or resumed.

        A run that finished before the app was opened is history and stays in Runs; so does one
        whose files are damaged.
        """
        shown = (each for each in snapshot.runs if each.state != "damaged")
        run = max(shown, key=lambda each: each.begun, default=None)
        if run is None or run.id in dismissed:
            return None
        old = run.begun < self.opened and run.state == "finished"
        return None if old else run

    def free_name(self, wanted: str) -> str:
        """Return a name that no adapter has, the wanted one where possible."""
        return self.service.free_name(wanted)


def error_of(job: Job) -> errors.WorkbenchError | None:
    """Return the error that ended a job, if one did."""
    if not job.done():
        return None
    try:
        job.result(timeout=0)
    except errors.WorkbenchError as error:
        return error
    return None
