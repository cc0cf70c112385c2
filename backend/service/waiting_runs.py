"""The part of the service that queues training runs and starts each one in turn."""

import time
from abc import abstractmethod

from backend import requests as rq
from backend import results as rs
from backend.errors import DiskFull, NotFound, WorkbenchError
from backend.permissions import Caller, check_caller, resolved
from backend.runs.training_queue import QueueRunner, TrainingQueue, require_room
from backend.service.engine_client import EngineLink
from backend.service.jobs import Job
from backend.service.start_checks import Starts
from backend.settings import Settings

ROOM_EVERY_S = 30.0  # how often a waiting run is tried again while the disk is full


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

        Raises the errors that `start` would raise now, except Busy.
        """
        check_caller(train, self.settings, caller)
        train = resolved(train, caller)
        with self.engine.lock:
            base = self.engine.require_base()
            self.starts.check_new(train)
            item = self.queue.add(train, base, caller)
            self.engine.version += 1
        self.run_queue()
        return item.describe(base)

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
        engine = self.engine
        with engine.lock:
            if engine.base is None or engine.current is not None or engine.slot is not None:
                return
            if any(job.run_id is not None for job in engine.jobs()):
                return  # a run in separate processes
            item = self.queue.next_for(engine.base)
            if item is None or time.monotonic() < self._queue_rests_until:
                return
            try:
                with self.queue.turn_of(item):
                    require_room(self.settings.workspace)
                    self.start(item.train, caller=item.caller)
            except DiskFull as error:
                self._queue_rests_until = time.monotonic() + ROOM_EVERY_S
                engine.say("bad", f"{item.train.name} waits for free disk space: {error}")
            except WorkbenchError as error:
                engine.say("bad", f"{item.train.name} was next but could not start: {error}")
