"""A run in separate processes, as the service sees it: started here, or launched by hand.

`LaunchedRun` implements `Runtime`, like an engine, and sends the same messages about its job. It
knows only the files in the run's folder. So a run that was launched by hand, on one or several
machines, is shown and stopped like a run that was started on the page.
"""

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from backend.errors import DataChanged, DiskFull, Stopped, WorkbenchError, WorkerDied, from_dict
from backend.requests import Request, Resume
from backend.results import RunResult, RunSummary
from backend.runs import launch_commands
from backend.runs.run_store import UNDER_WAY, Run, Runs
from backend.service import allocator
from backend.service.engine_client import EngineLink
from backend.service.jobs import Job
from backend.service.worker_process import NEW_GROUP, Message, OnMessage, process_environment
from backend.settings import PROJECT

LOOK_EVERY_S = 0.3
STOP_GRACE_S = 20.0
RESULT_GRACE_S = 10.0
log = logging.getLogger(__name__)


class LaunchedRun:
    """Follows one run until it ends and reports its state. `start` launches its processes."""

    def __init__(
        self,
        run: Run,
        job_id: int,
        on_message: OnMessage,
        *,
        start: bool,
        changed_data: bool = False,
    ) -> None:
        self.run = run
        self._changed_data = changed_data
        self._job_id = job_id
        self._on_message = on_message
        self._before = run.known_status().claimed
        self._killed = False
        self._said: Message = {}
        self._let_go = threading.Event()
        self._process = self._launch() if start else None
        self._thread = threading.Thread(target=self._follow, name="run-follower", daemon=True)
        self._thread.start()

    # -- messages to the run ----------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Pass on a stop or save command through the run's folder.

        If the disk is full, a stop is sent to its processes on this machine instead.
        """
        word = message.get("control")
        if word not in ("stop", "abort", "save"):
            return
        try:
            self.run.tell(word)
        except DiskFull as error:
            log.warning("The run %s did not get the command %s: %s", self.run.id, word, error)
            if word != "save":
                self._end(psutil.Process.terminate, self._processes()[:1])

    def kill(self) -> bool:
        """Kill all its processes on this machine; those on other machines then end too."""
        self._killed = True
        with suppress(DiskFull):
            self.run.tell("abort")
        self._end(psutil.Process.kill, self._processes())
        return True

    def _end(self, how: Callable[[psutil.Process], None], processes: list[psutil.Process]) -> None:
        for process in processes:
            try:
                how(process)
            except psutil.NoSuchProcess:
                log.debug("Process %s had ended already.", process.pid)

    def close(self) -> None:
        """Stop and save a run that was started here; a run launched by hand continues."""
        if self._process is not None and self._process.poll() is None:
            self.send({"control": "stop"})
            try:
                self._process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        elif self._process is None:
            self._let_go.set()
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_GRACE_S)

    def memory_bytes(self) -> int:
        """Return the resident memory of its processes on this machine."""
        total = 0
        for process in self._processes():
            try:
                total += int(process.memory_info().rss)
            except psutil.Error:
                continue
        return total

    # -- its processes ---------------------------------------------------------------------------

    def _launch(self) -> "subprocess.Popen[bytes]":
        run, processes = self.run, self.run.request.train.processes
        run.forget_words()
        with (run.folder / "launch.log").open("ab") as output:
            return subprocess.Popen(
                launch_commands.arguments(
                    run.folder.absolute(), processes, changed_data=self._changed_data
                ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=PROJECT,
                env=process_environment(
                    {**allocator.environment(), **launch_commands.environment(processes)}
                ),
                start_new_session=True,  # Ctrl-C in the terminal is the app's to handle
                creationflags=NEW_GROUP,
            )

    def _processes(self) -> list[psutil.Process]:
        """Return the launcher and its children, or a hand-launched run's leading process."""
        status = self.run.known_status()
        first = self._process.pid if self._process is not None else status.pid
        here = status.host in ("", socket.gethostname())  # else the id means nothing
        going_on = here and status.state == "running" and self.run.is_alive()
        if self._process is None and not going_on:
            return []
        try:
            parent = psutil.Process(first)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _is_over(self) -> bool:
        """Return whether no process trains the run any longer."""
        status = self.run.known_status()
        if self._process is not None and self._process.poll() is None:
            return False
        return not (status.state == "running" and self.run.is_alive())

    # -- messages about it -----------------------------------------------------------------------

    def _follow(self) -> None:
        """Read the run's state repeatedly until it is over, or until `close`."""
        while not self._let_go.is_set():
            try:
                over = self._is_over()
                if over:
                    break
                self._say_how_far()
            except (OSError, ValueError, WorkbenchError) as error:
                if not self.run.folder.exists():
                    break
                log.info("The run %s could not be read just now: %s", self.run.id, error)
            self._let_go.wait(LOOK_EVERY_S)
        if not self._let_go.is_set():
            self._say_end()

    def _say_how_far(self) -> None:
        status = self.run.status()
        message: Message = {"type": "progress", "id": self._job_id, "seconds_left": None}
        if self._never_began():
            message |= {"text": "Starting the processes", "fraction": None}
        elif not status.step or not status.total_steps:
            message |= {"text": "Getting ready", "fraction": None}
        else:
            message |= {
                "text": f"step {status.step:,} of {status.total_steps:,}",
                "fraction": status.step / status.total_steps,
                "seconds_left": self._seconds_left(),
            }
        if message != self._said:
            self._said = message
            self._on_message(message)

    def _seconds_left(self) -> float | None:
        status = self.run.status()
        seconds, steps = status.trained_seconds, status.step
        return (status.total_steps - steps) * seconds / steps if steps and seconds else None

    def _say_end(self) -> None:
        try:
            message = self._ending()
        except (OSError, ValueError, WorkbenchError) as error:
            known = WorkbenchError("The run's folder cannot be read.", details=str(error))
            message = {"type": "error", "error": known.to_dict()}
        self._on_message({**message, "id": self._job_id})

    def _ending(self) -> Message:
        """Return the result or error in the run's folder; record the end if it is missing."""
        status = self.run.status()
        if status.state in UNDER_WAY or self._never_began():
            return {"type": "error", "error": self._broken_off().to_dict()}
        result = self.run.folder / "result.json"
        if status.data_change is not None and not result.is_file():
            return {"type": "error", "error": DataChanged(status.data_change.what).to_dict()}
        if status.state in ("finished", "stopped") and not status.error:
            self._wait_for(result)
            found = RunResult.model_validate_json(result.read_text(encoding="utf-8"))
            return {"type": "result", "result": found.model_dump(mode="json")}
        told = {"kind": status.error, "what": status.message, "cure": status.cure}
        return {"type": "error", "error": from_dict(told).to_dict()}

    def _wait_for(self, file: Path) -> None:
        """Wait a moment for the file that the leading process writes last."""
        until = time.monotonic() + RESULT_GRACE_S
        while not file.is_file() and time.monotonic() < until:
            time.sleep(0.1)

    def _broken_off(self) -> WorkbenchError:
        """Record that the leading process has ended, and return the error to raise."""
        name = self.run.request.train.name
        if self._killed:
            self.run.interrupt("Stopped immediately on request.", state="stopped")
            return Stopped(f"Training {name} was stopped immediately.")
        if self._never_began():
            reason = "its processes could not be started."
            self.run.interrupt(reason[0].upper() + reason[1:])
            what = f"Training {name} was interrupted: {reason}"
            return WorkerDied(what, details=self._last_lines())
        reason = "its leading process ended: killed, by someone or for lack of memory"
        self.run.interrupt(f"The run was interrupted: {reason}.")
        cure = self.run.status().cure
        return WorkerDied(f"Training {name} was interrupted: {reason}.", cure=cure)

    def _never_began(self) -> bool:
        """Return whether the processes started here have not begun the run, yet or at all."""
        return self._process is not None and self.run.known_status().claimed == self._before

    def _last_lines(self) -> str:
        try:
            return (self.run.folder / "launch.log").read_text(encoding="utf-8", errors="replace")[
                -4000:
            ]
        except OSError:
            return ""


def begin(engine: EngineLink, request: Request, run: Run) -> Job:
    """Start a run's processes on this machine; raises WorkerDied if that fails."""
    try:
        return _follow(engine, request, run, start=True)
    except OSError as error:
        reason = f"Its processes could not be started: {error.strerror or error}."
        run.interrupt(reason)
        raise WorkerDied(reason) from error


def adopt(engine: EngineLink, runs: Runs, summaries: list[RunSummary]) -> None:
    """Follow the runs that were launched by hand and are not followed yet."""
    going = [s.id for s in summaries if s.launched and s.state == "running"]
    if not going:
        return
    with engine.lock:
        for run_id in set(going) - {job.run_id for job in engine.jobs()}:
            run = runs.get(run_id)
            if run.status().state == "running":
                _follow(engine, run.request.train, run, start=False)


def _follow(engine: EngineLink, request: Request, run: Run, *, start: bool) -> Job:
    changed_data = isinstance(request, Resume) and request.changed_data

    def launched(job_id: int, said: OnMessage) -> LaunchedRun:
        return LaunchedRun(run, job_id, said, start=start, changed_data=changed_data)

    return engine.sides.begin_apart(request, run.id, launched)
