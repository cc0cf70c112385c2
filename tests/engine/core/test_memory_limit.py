"""The bound on a worker's data: it follows the memory that is free, operation by operation."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backend import Settings
from backend.engine.core import memory
from backend.engine.worker import Engine

MB = 1024**2
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Only Linux has such a limit.")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine whose free memory and whose limits are plain numbers."""
    state = SimpleNamespace(available=4000 * MB, data=100 * MB, limits=(-1, -1))

    def setrlimit(kind: int, limits: tuple[int, int]) -> None:
        state.limits = limits

    resource = SimpleNamespace(
        RLIMIT_DATA=2,
        RLIM_INFINITY=-1,
        setrlimit=setrlimit,
        getrlimit=lambda kind: state.limits,
    )
    monkeypatch.setattr(memory, "resource", resource)
    monkeypatch.setattr(memory, "_field", lambda name: state.data)
    monkeypatch.setattr(
        memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=state.available)
    )
    return state


def test_the_limit_follows_what_other_programs_take_and_free(machine: SimpleNamespace) -> None:
    limit = memory.DataLimit(reserve=500 * MB, limit=None)
    assert machine.limits == (3600 * MB, -1)

    machine.available, machine.data = 1500 * MB, 300 * MB
    limit.renew()
    assert machine.limits == (1300 * MB, -1)
    assert memory.available(torch.device("cpu")) == 1000 * MB

    machine.available = 8000 * MB
    limit.renew()
    assert machine.limits == (7800 * MB, -1)
    assert memory.available(torch.device("cpu")) == 7500 * MB


def test_an_operation_may_always_take_a_little(machine: SimpleNamespace) -> None:
    machine.available = 100 * MB

    memory.DataLimit(reserve=500 * MB, limit=None)

    assert machine.limits[0] == machine.data + memory.LEAST_ROOM


def test_a_limit_that_a_person_set_stays(machine: SimpleNamespace) -> None:
    limit = memory.DataLimit(reserve=500 * MB, limit=1000 * MB)

    machine.available, machine.data = 8000 * MB, 900 * MB
    limit.renew()

    assert machine.limits == (1100 * MB, -1)


def test_a_limit_of_the_system_is_kept(machine: SimpleNamespace) -> None:
    machine.limits = (-1, 2000 * MB)  # ulimit -d

    memory.DataLimit(reserve=500 * MB, limit=None)

    assert machine.limits == (2000 * MB, 2000 * MB)


@pytest.mark.parametrize(("runtime", "bounded"), [("process", True), ("inline", False)])
def test_each_operation_begins_with_a_limit_of_its_own(
    machine: SimpleNamespace, tmp_path: Path, runtime: Any, bounded: bool
) -> None:
    engine = Engine(Settings(workspace=tmp_path, runtime=runtime), lambda message: None)
    before = machine.limits
    machine.available = 2000 * MB

    engine.handle({"id": 1, "op": "unload-model", "request": {}})

    assert (machine.limits != before) == bounded
    reserve = engine.settings.memory_reserve_bytes
    assert machine.limits[0] == (machine.data + 2000 * MB - reserve if bounded else -1)


def test_a_real_process_has_the_limit() -> None:
    """In a process of its own: a limit cannot be tried on the one that tests."""
    import subprocess

    script = (
        "import resource\n"
        "from backend.engine.core import memory\n"
        "memory.DataLimit(reserve=0, limit=300 * 1024**2)\n"
        "bytes(100 * 1024**2)\n"
        "try:\n"
        "    bytes(600 * 1024**2)\n"
        "except MemoryError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "refused", done.stderr


def test_a_process_that_only_reads_leaves_the_worker_room(
    machine: SimpleNamespace, tmp_path: Path
) -> None:
    settings = Settings(workspace=tmp_path, memory_reserve_bytes=500 * MB)
    engine = Engine(settings, lambda message: None, reads_only=True)
    engine.handle({"id": 1, "op": "similarity", "request": {"names": ["a", "b"]}})

    assert machine.limits == (100 * MB + 1750 * MB, -1)


def test_a_process_that_only_reads_reports_what_the_worker_may_take(
    machine: SimpleNamespace, tmp_path: Path
) -> None:
    settings = Settings(workspace=tmp_path, memory_reserve_bytes=500 * MB)
    reader = Engine(settings, lambda message: None, reads_only=True)
    worker = Engine(settings, lambda message: None)

    free = reader._free_for({"free_gpu_bytes": 7 * MB})

    assert free(torch.device("cpu")) == 3500 * MB
    assert free(torch.device("cuda")) == 7 * MB
    assert worker._free_for({}) is memory.available
