"""The worker as it would be if nobody were told anything: only for measuring what telling costs.

Step events are kept in memory and written once the run is over, so that it can be timed the same
way; status and progress are not written at all while it trains.
"""

import time
from typing import Any

from backend.engine.__main__ import main
from backend.engine.core import job_control
from backend.engine.runs import segment
from backend.runs.events import EventWriter

write_now, close_now = EventWriter.write, EventWriter.close
kept: list[tuple[str, float, dict[str, Any]]] = []


def keep(writer: EventWriter, type: str, **fields: Any) -> None:
    """Remember an event instead of writing it."""
    kept.append((type, time.time(), fields))


def write_kept(writer: EventWriter) -> None:
    """Write what was kept, each event with the time at which it happened."""
    real = time.time
    try:
        for type, moment, fields in kept:
            time.time = lambda moment=moment: moment
            write_now(writer, type, **fields)
    finally:
        time.time = real
        kept.clear()
    close_now(writer)


def say_nothing(*words: Any, **more: Any) -> None:
    """Stand in for what tells."""


if __name__ == "__main__":
    EventWriter.write = keep
    EventWriter.close = write_kept
    job_control.Control.progress = say_nothing
    segment.Segment._write_status = say_nothing
    main()
