"""The part of the service that lets trainings wait in the queue, and starts each in its turn."""

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

ROOM_EVERY_S = 30.0  # so often a training that waits is tried again while the disk is full


class WaitingRuns:
    """What every service can do with its queue of trainings."""

    settings: Settings
    engine: EngineLink
    starts: Starts
    queue: TrainingQueue
    _queue_runner: QueueRunner | None = None
    _queue_rests_until = 0.0

    @abstractmethod
    def start(self, request: rq.Request, *, caller: Caller = "local") -> Job:
        """Start an operation; the queue starts each training as a person would."""

    def enqueue(self, train: rq.Train, *, caller: Caller = "local") -> rs.QueuedRun:
        """Let a training wait its turn on the loaded base; it starts by itself.

        Raises what would keep it from starting now, save that something else is going on.
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
        """Take a training out of the queue; raises NotFound where it does not wait any more."""
        with self.engine.lock:
            if not self.queue.remove(id):
                raise NotFound("This training does not wait any more.", cure="Look under Runs.")
            self.engine.version += 1

    def run_queue(self) -> None:
        """Work the queue off from now on, also what an earlier app left in it."""
        with self.engine.lock:
            self._queue_runner = self._queue_runner or QueueRunner(self._start_next)

    def _start_next(self) -> None:
        """Start what waits first for the loaded base, if nothing else is going on."""
        engine = self.engine
        with engine.lock:
            if engine.base is None or engine.current is not None or engine.slot is not None:
                return
            if any(job.run_id is not None for job in engine.jobs()):
                return  # a run with processes of its own
            item = self.queue.next_for(engine.base)
            if item is None or time.monotonic() < self._queue_rests_until:
                return
            try:
                with self.queue.turn_of(item):
                    require_room(self.settings.workspace)
                    self.start(item.train, caller=item.caller)
            except DiskFull as error:
                self._queue_rests_until = time.monotonic() + ROOM_EVERY_S
                engine.say("bad", f"{item.train.name} waits until there is room: {error}")
            except WorkbenchError as error:
                engine.say("bad", f"{item.train.name} had its turn but did not start: {error}")
