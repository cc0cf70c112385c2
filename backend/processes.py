"""Processes that were written down by number and start time, since numbers are used again."""

import psutil

SAME_START_S = 1.0


def is_running(pid: int, started: float) -> bool:
    """Tell whether the process with this number is still the one that started at this time.

    A zombie is not: it has ended, and only waits for its parent to collect it. Where an app was
    killed in a container, nobody may ever do that.
    """
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < SAME_START_S
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
