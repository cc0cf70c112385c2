"""Processes identified by id and start time, since process ids are reused."""

import psutil

SAME_START_S = 1.0


def is_running(pid: int, started: float) -> bool:
    """Return whether the process with this id still runs and started at this time.

    A zombie does not count: it has ended, and its parent has not collected it. If an app was killed
    in a container, that may never happen.
    """
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < SAME_START_S
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
