"""The real app in a process of its own, on a free port, as `python app.py` starts it."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import httpx
import psutil

from backend.runs.run_store import Runs, RunStatus

ROOT = Path(__file__).resolve().parent.parent
START_S = 120.0
LOOK_EVERY_S = 0.02
OVER = frozenset({"finished", "stopped", "failed", "interrupted"})


class App:
    """A running app; `process` is the one that serves the page.

    `environment` is what the person has set.
    """

    def __init__(self, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self.workspace = Path(tempfile.mkdtemp(prefix="workbench-"))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.started = time.perf_counter()
        command = [sys.executable, "app.py", "--no-browser", "--workspace", str(self.workspace)]
        self._log = (self.workspace / "app.log").open("wb")
        self._popen = subprocess.Popen(
            [*command, "--port", self.url.rsplit(":", 1)[1]],
            cwd=ROOT,
            env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", **environment},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.process = psutil.Process(self._popen.pid)
        self._http = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._popen.terminate()
        try:
            self._popen.wait(30)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._log.close()
        self._http.close()
        shutil.rmtree(self.workspace, ignore_errors=True)

    def wait_for_page(self) -> float:
        """Wait until page and configuration load; returns the seconds since the start."""
        while not (self._loads("/") and self._loads("/config")):
            if self._popen.poll() is not None or time.perf_counter() - self.started > START_S:
                raise RuntimeError(f"The app did not open:\n{self.log()}")
            time.sleep(LOOK_EVERY_S)
        return time.perf_counter() - self.started

    def wait_for_model(self) -> None:
        """Wait until the worker is warm: the starter is loaded and nothing runs."""
        while self.call("snapshot")["phase"] != "ready":
            if time.perf_counter() - self.started > START_S:
                raise RuntimeError(f"The model did not load:\n{self.log()}")
            time.sleep(0.2)

    def wait_for_training(self) -> str:
        """Wait until a run is going on; returns its id."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            job = self.call("snapshot")["job"]
            if job is not None and job["run_id"]:
                return str(job["run_id"])
            time.sleep(0.1)
        raise RuntimeError(f"No run has begun:\n{self.log()}")

    def call(self, endpoint: str, *values: object) -> Any:
        """Call one of the app's HTTP endpoints."""
        path = f"/gradio_api/call/{endpoint}"
        asked = self._http.post(path, json={"data": values}).raise_for_status()
        answer = self._http.get(f"{path}/{asked.json()['event_id']}").raise_for_status()
        kind, data = re.findall(r"event: (\w+)\ndata: (.*)", answer.text)[-1]
        if kind != "complete":
            raise RuntimeError(f"{endpoint} failed: {data}")
        return json.loads(data)[0]

    def run_status(self, run_id: str) -> RunStatus:
        """Look at a run on the disk, which costs the app nothing."""
        return Runs(self.workspace / "runs").get(run_id).status()

    def wait_for_run(self, run_id: str) -> RunStatus:
        """Wait until a run is over, without asking the app."""
        while (status := self.run_status(run_id)).state not in OVER:
            time.sleep(0.5)
        if status.state != "finished":
            raise RuntimeError(f"The run {status.state}: {status.message}")
        while self.call("snapshot")["job"] is not None:
            time.sleep(0.1)
        return status

    def cpu_seconds(self) -> float:
        """Return the processor time that the page's process has taken so far."""
        times = self.process.cpu_times()
        return times.user + times.system

    def log(self) -> str:
        """Return what the app printed."""
        return (self.workspace / "app.log").read_text(encoding="utf-8", errors="replace")

    def _loads(self, path: str) -> bool:
        try:
            return self._http.get(path).status_code == 200
        except httpx.TransportError:
            return False


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
