"""The part of the service that queues training runs, checks them, and starts each one in turn.

A run is checked like the form: when it is put in, and its data again in its turn. Large data is
then read completely by `PrepareData`, as the form does. No lock is held meanwhile.
"""

import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from backend import requests as rq
from backend import results as rs
from backend.errors import DiskFull, InvalidRequest, NotFound, Stopped, WorkbenchError
from backend.permissions import Caller, check_caller, resolved
from backend.runs.data_record import what_changed
from backend.runs.training_queue import QueueRunner, TrainingQueue, Waiting, require_room
from backend.service.engine_client import EngineLink
from backend.service.jobs import Job
from backend.service.start_checks import Starts
from backend.settings import Settings

LISTEN_EVERY_S = 0.5
ROOM_EVERY_S = 30.0  # how often a waiting run is tried again while the disk is full
Start = Callable[[rq.Request], Job]
"""Starts a request for the caller of the queue."""
IsOver = Callable[[], bool]


class WaitingRuns:
    """The service's operations on its queue of training runs."""

    settings: Settings
    engine: EngineLink
    starts: Starts
    queue: TrainingQueue
    _queue_runner: QueueRunner | None = None
    _queue_rests_until = 0.0

    @abstractmethod
    def start(self, request: rq.Request, *, caller: Caller = "local") -> Job:
        """Start an operation; the queue starts each run as a user would."""

    def enqueue(self, train: rq.Train, *, caller: Caller = "local") -> rs.QueuedRun:
        """Add a training run on the loaded base to the queue; it starts automatically.

        It is checked at once, like the form. Raises the errors that `start` would raise now, except
        Busy, and InvalidRequest with the problems of the check.
        """
        check_caller(train, self.settings, caller)
        train = resolved(train, caller)
        with self.engine.lock:
            self.engine.require_base()
            self.starts.check_new(train)
        mark = self._checked(train, caller)
        with self.engine.lock:
            base = self.engine.require_base()
            self.starts.check_new(train)
            item = self.queue.add(train, base, caller, mark)
            self.engine.version += 1
        self.run_queue()
        return item.describe(base)

    def confirm_queued(self, id: str) -> None:
        """Let a waiting run start with its data as it is now, which is checked again.

        Raises NotFound if it is no longer waiting, and InvalidRequest if the data has problems.
        """
        with self.engine.lock:
            item = self.queue.get(id)
        mark = self._checked(item.dated, item.caller)
        with self.engine.lock:
            self.queue.note(id, mark=mark)
            self.engine.version += 1

    def _checked(self, train: rq.Train, caller: Caller) -> rs.DataMark | None:
        """Return what the data of a run is now; raises its problems. None if it has to wait.

        An inline engine checks nothing while it trains; there the check is made in its turn.
        """
        if self.settings.runtime == "inline" and not self.engine.idle:
            return None
        report = _report_of(train, self._starter(caller), lambda: False)
        _require_ready(report)
        return report.mark

    def _starter(self, caller: Caller) -> Start:
        return lambda request: self.start(request, caller=caller)

    def unqueue(self, id: str) -> None:
        """Remove a run from the queue; raises NotFound if it is no longer waiting."""
        with self.engine.lock:
            if not self.queue.remove(id):
                raise NotFound("This run is no longer waiting.", cure="Look under Runs.")
            self.engine.version += 1

    def run_queue(self) -> None:
        """Start to process the queue, including entries that an earlier app left in it."""
        with self.engine.lock:
            self._queue_runner = self._queue_runner or QueueRunner(self._start_next)

    def _start_next(self) -> None:
        """Start the first run that waits for the loaded base, if nothing else is running."""
        item = self._next()
        if item is None or self._must_ask(item):
            return
        engine = self.engine
        with engine.lock:
            if self._next() != item:
                return  # something else was started, or it was removed, while it was checked
            try:
                with self.queue.turn_of(item):
                    require_room(self.settings.workspace)
                    self.start(item.train, caller=item.caller)
            except DiskFull as error:
                self._queue_rests_until = time.monotonic() + ROOM_EVERY_S
                engine.say("bad", f"{item.train.name} waits for free disk space: {error}")
            except WorkbenchError as error:
                engine.say("bad", f"{item.train.name} was next but could not start: {error}")

    def _next(self) -> Waiting | None:
        """Return the run whose turn it is; None while something else is running."""
        engine = self.engine
        with engine.lock:
            if engine.base is None or engine.current is not None or engine.slot is not None:
                return None
            if any(job.run_id is not None for job in engine.jobs()):
                return None  # a run in separate processes
            rests = time.monotonic() < self._queue_rests_until
            return None if rests else self.queue.next_for(engine.base)

    def _must_ask(self, item: Waiting) -> bool:
        """Return whether a run's data has changed since it was put in; it then waits."""
        runner = self._queue_runner
        try:
            what = _question(
                item, self._starter(item.caller), lambda: runner is not None and runner.is_closed
            )
        except Stopped:
            return True
        if not what:
            return False
        with self.engine.lock, suppress(NotFound):
            self.queue.note(item.id, mark=item.mark, question=what)
            self.engine.say("bad", f"{item.train.name} was next and waits: {what}")
        return True


def _report_of(train: rq.Train, start: Start, is_over: IsOver) -> rs.PreflightReport:
    """Check a run as the form does; raises what the data raises, or Stopped when all is over."""
    look: rs.DataPreview = _result(start(_preview(train)), is_over)
    if not look.quick:
        _result(start(_preparation(train)), is_over)
    check = rq.Preflight(train=train, measure=False, in_turn=True)
    report: rs.PreflightReport = _result(start(check), is_over)
    return report


def _require_ready(report: rs.PreflightReport) -> None:
    """Raise InvalidRequest with the problems that a check has found."""
    if not report.problems:
        return
    first, *others = report.problems
    if not others:
        raise InvalidRequest(first.what, cure=first.cure)
    raise InvalidRequest(" ".join(f"{each.what} {each.cure}".strip() for each in report.problems))


def _question(item: Waiting, start: Start, is_over: IsOver) -> str:
    """Return what has changed in a run's data since it was put in; empty if nothing has.

    A run that could not be checked when it was put in has no question.
    """
    if item.mark is None:
        return ""
    try:
        report = _report_of(item.dated, start, is_over)
    except Stopped:
        raise
    except WorkbenchError as error:
        return f"{error.what} {error.cure}".strip()
    if report.mark is None:
        return " ".join(f"{each.what} {each.cure}".strip() for each in report.problems)
    if report.mark.is_same(item.mark):
        return ""
    return what_changed(item.mark, report.mark, item.train, since="it was queued")


def _result(job: Job, is_over: IsOver) -> Any:
    while not job.wait(LISTEN_EVERY_S):
        if is_over():
            raise Stopped("The workbench was closed.")
    return job.result()


def _preview(train: rq.Train) -> rq.PreviewData:
    return rq.PreviewData(
        data=train.data,
        columns=train.columns,
        max_length=train.longest,
        drop_bad_rows=train.drop_bad_rows,
        every_row=False,
        **_learned(train),
    )


def _preparation(train: rq.Train) -> rq.PrepareData:
    return rq.PrepareData(
        data=train.data, columns=train.columns, held_out=train.held_out, **_learned(train)
    )


def _learned(train: rq.Train) -> dict[str, Any]:
    """Return the settings that decide which part of an example has a loss."""
    shared = rq.PrepareData.model_fields.keys() - {"data", "columns", "held_out"}
    return {name: getattr(train, name) for name in shared}
