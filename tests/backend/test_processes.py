"""Whether a process that somebody wrote down is still there."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from backend.processes import is_running

STAYS = "input()"


@pytest.fixture
def process() -> Iterator[psutil.Process]:
    """A process that stays until it is killed; nobody collects it before the test is over."""
    started = subprocess.Popen([sys.executable, "-S", "-c", STAYS], stdin=subprocess.PIPE)
    yield psutil.Process(started.pid)
    started.kill()
    assert started.stdin is not None
    started.stdin.close()
    started.wait()


def test_a_process_that_runs_is_running(process: psutil.Process):
    assert is_running(process.pid, process.create_time())


def test_another_process_of_the_same_number_is_not_it(process: psutil.Process):
    assert not is_running(process.pid, process.create_time() - 60)


def test_a_number_that_no_process_has_is_not_running():
    assert not is_running(2**22 + 1, time.time())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no zombies")
def test_a_killed_process_that_nobody_collected_is_not_running(process: psutil.Process):
    """In a container, an app's worker may stay a zombie for as long as the container lives."""
    began = process.create_time()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays
    assert not is_running(process.pid, began)
