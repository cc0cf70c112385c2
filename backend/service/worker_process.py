"""Where the engine runs: a worker process (default) or a thread of this process (inline).

Both take the same messages and send the same replies, so the service needs no distinction.
To the engine: `{"id", "op", "request", ...}` starts an operation, and `{"control": "stop", "id"}`
and the like control the running one. From it: `ready`, `progress`, `piece`, `session`, `result`,
`error`.
This module never imports the engine at the top, so that the page's process stays free of torch.
"""

import gc
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import psutil

from backend.service import allocator
from backend.settings import PROJECT, Settings

Message = dict[str, Any]
OnMessage = Callable[[Message], None]
OnExit = Callable[[str], None]
"""Called once when the engine has ended, with the reason as text for the user."""


log = logging.getLogger(__name__)
EXIT_GRACE_S = 5.0
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false"}
# How many loop turns a libgomp thread spins while it waits for the others before it sleeps: about
# half a millisecond. With 0 (OMP_WAIT_POLICY=PASSIVE) threads wake late, thousands of times a step,
# which makes training and chat a third slower. With 300,000, libgomp's default, threads block the
# cores for milliseconds, and next to other busy programs training takes several times as long.
# `python -m benchmarks.wait_policy` measures it.
SPIN_COUNT = 30_000
# Large tensors in pages of 2 MB: a merge allocates each weight again, and pages of 4 KB took half
# its time. Not for models that stay loaded: they would take more memory than is reported.
STREAMING = {"THP_MEM_ALLOC_ENABLE": "1"}
MEMORY_EVERY_S = 2.0
PASSWORD = "ADAPTER_WORKBENCH_PASSWORD"
"""Prefix of the variables with the page's password or the path of its file."""
# The equivalent of `start_new_session` on Windows, where subprocess ignores that option.
if sys.platform == "win32":
    NEW_GROUP = subprocess.CREATE_NEW_PROCESS_GROUP
else:
    NEW_GROUP = 0


def deliver(message: Message, take: OnMessage) -> None:
    """Deliver a message; an error affects only this message, not the thread."""
    try:
        take(message)
    except Exception as error:
        log.error("A message of type %s could not be handled.", kind_of(message), exc_info=error)


def kind_of(message: Message) -> str:
    """Return the type of a message for the log, without its contents."""
    return str(message.get("type") or message.get("op") or message.get("control"))


class Runtime(Protocol):
    """One engine, wherever it runs."""

    def send(self, message: Message) -> None:
        """Send a message to the engine; nothing happens if it has ended."""

    def close(self) -> None:
        """Close the engine and wait until it has ended; `on_exit` is not called."""

    def kill(self) -> bool:
        """Kill the engine; False if that is not possible."""

    def memory_bytes(self) -> int:
        """Return the resident memory of the engine's process."""


class MemorySample:
    """The memory use of an engine, sampled from time to time."""

    def __init__(self) -> None:
        self.known = 0
        self._taken = 0.0

    def sample(self, runtime: Runtime | None) -> bool:
        """Read the memory at most every few seconds; return whether it changed by more than 2 %."""
        if runtime is None or time.monotonic() - self._taken < MEMORY_EVERY_S:
            return False
        self._taken, used = time.monotonic(), runtime.memory_bytes()
        if abs(used - self.known) <= 0.02 * max(self.known, 1):
            return False
        self.known = used
        return True


class WorkerProcess:
    """An engine in a separate process: if it crashes or is killed, the page keeps running."""

    def __init__(
        self,
        settings: Settings,
        on_message: OnMessage,
        on_exit: OnExit,
        *,
        log_file: Path,
        environment: dict[str, str],
        role: tuple[str, ...] = (),
    ) -> None:
        self._on_message = on_message
        self._on_exit = on_exit
        self._closing = False
        self._send_lock = threading.Lock()
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "backend.engine", *role],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=PROJECT,
                env=process_environment(environment),
                start_new_session=True,  # Ctrl-C in the terminal is the app's to handle
                creationflags=NEW_GROUP,
            )
        self.send({"settings": settings.model_dump(mode="json")})
        self._reader = threading.Thread(target=self._read, name="worker-reader", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Message) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            with self._send_lock:
                stdin.write(json.dumps(message).encode() + b"\n")
                stdin.flush()
        except (OSError, ValueError):
            log.info("The worker has ended; a message was not delivered.")

    def close(self) -> None:
        self._closing = True
        self.send({"control": "exit"})
        self._close_stdin()
        try:
            self._process.wait(EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(EXIT_GRACE_S)

    def kill(self) -> bool:
        self._process.kill()
        return True

    def memory_bytes(self) -> int:
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def _close_stdin(self) -> None:
        try:
            if self._process.stdin:
                self._process.stdin.close()
        except OSError:
            log.debug("The worker's input was closed already.")

    def _read(self) -> None:
        stdout: IO[bytes] | None = self._process.stdout
        assert stdout is not None
        for line in stdout:
            try:
                message = json.loads(line)
            except ValueError:
                log.warning("The worker wrote a line that is not a message: %r", line[:200])
                continue
            deliver(message, self._on_message)
        stdout.close()
        code = self._process.wait()
        self._close_stdin()
        if not self._closing:
            self._on_exit(_exit_reason(code))


class InlineRuntime:
    """An engine on one thread of this process: for tests, notebooks and shared GPUs."""

    def __init__(self, settings: Settings, on_message: OnMessage, on_exit: OnExit) -> None:
        self._settings = settings
        self._on_message = on_message
        self._on_exit = on_exit
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._engine: Any = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inline-engine", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        if "control" in message:
            self._ready.wait()
            if self._engine is not None:
                self._engine.control(message)
        else:
            self._inbox.put(message)

    def close(self) -> None:
        self.send({"control": "abort"})
        self._inbox.put(None)
        self._thread.join(60)

    def kill(self) -> bool:
        return False

    def memory_bytes(self) -> int:
        return int(psutil.Process().memory_info().rss)

    def _run(self) -> None:
        from backend.engine.worker import Engine

        gc.collect()  # this process may have left garbage
        try:
            self._engine = Engine(self._settings, self._on_message, self._inbox)
        finally:
            self._ready.set()
        self._on_message({"type": "ready", "pid": os.getpid()})
        while (message := self._inbox.get()) is not None:
            deliver(message, self._engine.handle)
        self._engine.close()


StartRuntime = Callable[[Settings, OnMessage, OnExit], Runtime]


def start_runtime(
    settings: Settings, on_message: OnMessage, on_exit: OnExit, *, log_name: str = "worker.log"
) -> Runtime:
    """Start an engine in the way that the settings name."""
    if settings.runtime == "inline":
        return InlineRuntime(settings, on_message, on_exit)
    return WorkerProcess(
        settings,
        on_message,
        on_exit,
        log_file=settings.workspace / log_name,
        environment=allocator.environment(),
    )


def process_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an engine's process; variables set by the user win.

    The page's password is not passed on: no engine needs it.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith(PASSWORD)}
    return {**ENVIRONMENT, **_waiting(), **own, **ours}


def _waiting() -> dict[str, str]:
    """Return how threads wait for each other in libgomp, which torch's wheels for Linux contain.

    The wheels for macOS and Windows contain other OpenMP libraries. A count would override a wait
    policy, so none is set if the user has set a policy.
    """
    if sys.platform != "linux" or "OMP_WAIT_POLICY" in os.environ:
        return {}
    return {"GOMP_SPINCOUNT": str(SPIN_COUNT)}


def _exit_reason(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    name = _signal_name(-code)
    if name == "SIGKILL":
        return "it was killed, by someone or because the machine ran out of memory"
    return f"it crashed ({name})"


def _signal_name(number: int) -> str:
    """Return the name of a signal. Not every signal has one, and Windows has few."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def start_beside(
    settings: Settings, on_message: OnMessage, on_exit: OnExit, *, streams: bool
) -> WorkerProcess:
    """Start an engine for one background job; `streams` if it only streams weights."""
    return WorkerProcess(
        settings,
        on_message,
        on_exit,
        log_file=settings.workspace / "side.log",
        environment=STREAMING if streams else allocator.environment(),
    )


def start_reading(settings: Settings, on_message: OnMessage, on_exit: OnExit) -> WorkerProcess:
    """Start an engine that only reads files, with less memory than a worker may take."""
    return WorkerProcess(
        settings,
        on_message,
        on_exit,
        log_file=settings.workspace / "side.log",
        environment=allocator.environment(),
        role=("read",),
    )
