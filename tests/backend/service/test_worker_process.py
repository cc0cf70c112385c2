"""The environment that processes with a model start with."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from backend import Service, Settings
from backend import requests as rq
from backend.service import external_run, worker_process
from backend.service.worker_process import (
    SPIN_COUNT,
    process_environment,
    start_beside,
    start_runtime,
)

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems' wheels differ")
PERSONS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def nothing_set_by_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PERSONS:
        monkeypatch.delenv(name, raising=False)


def worker(settings: Settings) -> Any:
    return start_runtime(settings, print, print)


def side_process(settings: Settings) -> Any:
    return start_beside(settings, print, print, streams=False)


def merging_process(settings: Settings) -> Any:
    return start_beside(settings, print, print, streams=True)


def environment_of(start: Start, workspace: Path) -> dict[str, str]:
    """Start a process, read its environment and end it."""
    process = start(Settings(workspace=workspace))
    try:
        return psutil.Process(process.pid).environ()
    finally:
        process.kill()
        process.close()


@on_linux
@pytest.mark.parametrize("start", [worker, side_process, merging_process])
def test_threads_of_an_engine_wait_awake_for_a_bounded_time(start: Start, tmp_workspace: Path):
    found = environment_of(start, tmp_workspace)
    assert found["GOMP_SPINCOUNT"] == str(SPIN_COUNT)
    assert "OMP_WAIT_POLICY" not in found


@on_linux
def test_processes_of_a_launched_run_wait_the_same_way(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    run_id = service.prepare_launch(rq.Train(name="shared", accumulation=2, processes=2)).run_id
    started: list[dict[str, str]] = []

    def popen(command: list[str], *, env: dict[str, str], **more: Any) -> None:
        started.append(env)
        raise OSError("Not in this test.")

    monkeypatch.setattr(external_run.subprocess, "Popen", popen)
    with pytest.raises(OSError, match="Not in this test"):
        external_run.LaunchedRun(service.runs.get(run_id), 1, print, start=True)
    assert started[0]["GOMP_SPINCOUNT"] == str(SPIN_COUNT)
    assert "OMP_WAIT_POLICY" not in started[0]


@on_linux
@pytest.mark.parametrize(
    ("name", "value"),
    [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7"), ("OMP_NUM_THREADS", "1")],
)
def test_what_the_person_has_set_wins(
    name: str, value: str, tmp_workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, value)
    found = environment_of(worker, tmp_workspace)
    assert found[name] == value
    if name == "OMP_WAIT_POLICY":
        assert "GOMP_SPINCOUNT" not in found  # a count would override the policy


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_get_no_variables_of_openmp(platform: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_process.sys, "platform", platform)
    for name in set(process_environment({})) - set(os.environ):
        assert not name.startswith(("OMP", "GOMP", "KMP"))


@on_linux
def test_the_openmp_library_of_torch_reads_the_count():
    loaded = subprocess.run(
        [sys.executable, "-c", "import torch"],
        env={**process_environment({}), "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in loaded.stderr


def test_no_engine_gets_the_password_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTER_WORKBENCH_PASSWORD", "name:secret")
    monkeypatch.setenv("ADAPTER_WORKBENCH_PASSWORD_FILE", "secret.txt")

    assert not [name for name in process_environment({}) if "PASSWORD" in name]
