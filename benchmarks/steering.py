"""How soon a run heeds pause, save now and stop, and how well its duration was predicted."""

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from backend import Event, Service, Settings
from backend import requests as rq
from benchmarks.interleave import Spread
from benchmarks.report import Report, flags, read_flags

MOST_BEYOND_A_STEP_S = 1.0
MOST_OFF = 0.20
TIMEOUT_S = 600.0
LOOK_EVERY_S = 0.005
ASKED = ("pause", "save now", "stop")
SETS = ("pirate", "storyteller", "records")


def main(arguments: list[str] | None = None) -> int:
    """Steer runs on the starter, let others run to their end, and report."""
    parser = flags(__doc__, repeats="runs")
    chosen, words = read_flags(parser, arguments, runs=1)
    report = Report("steering", "Runs that are steered", words)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(workspace=Path(folder))
        with Service(settings) as service:
            service.start(rq.LoadModel()).result(timeout=TIMEOUT_S)
            steered = [steer(service, f"steered {n}") for n in range(chosen.runs)]
            off = [miss(service, name, quick=chosen.quick) for name in SETS[: chosen.runs]]
    tell(steered, off, report)
    report.facts = {"runs": f"{chosen.runs} steered, one for each of {len(off)} data sets whole"}
    return report.finish(save=chosen.save)


def steer(service: Service, name: str) -> dict[str, float]:
    """Pause, save and stop one run; returns the seconds of each beyond one of its steps."""
    job = service.start(rq.Train(name=name, data="starter:pirate", epochs=100))
    run_id = str(job.run_id)
    until(lambda: len(steps(service, run_id)) >= 5)
    step = statistics.median(seconds_between(steps(service, run_id)))
    took = {}
    took["pause"] = measured(service.pause, lambda: is_paused(service)) - step
    service.resume()
    until(lambda: not is_paused(service))
    seen = kept(service, run_id)
    took["save now"] = measured(service.save_now, lambda: kept(service, run_id) > seen) - step
    began = time.monotonic()
    service.stop()
    job.result(timeout=TIMEOUT_S)
    took["stop"] = events_of(service, run_id, "saved")[-1].time - wall(began) - step
    took["stopped, tested and verified"] = time.monotonic() - began - step
    return took


def wall(moment: float) -> float:
    """Turn a moment of the monotonic clock into one of the wall clock, as events have it."""
    return moment - time.monotonic() + time.time()


def measured(ask: Callable[[], None], heeded: Callable[[], bool]) -> float:
    """Return the seconds from asking until it holds."""
    began = time.monotonic()
    ask()
    until(heeded)
    return time.monotonic() - began


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that comes soon."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("It never comes to that.")
        time.sleep(LOOK_EVERY_S)


def is_paused(service: Service) -> bool:
    """Tell whether the run holds still."""
    return service.snapshot().phase == "paused"


def events_of(service: Service, run_id: str, kind: str) -> list[Event]:
    """Return a run's events of one kind."""
    return [event for event in service.events(run_id) if event.type == kind]


def steps(service: Service, run_id: str) -> list[Event]:
    """Return a run's steps."""
    return events_of(service, run_id, "step")


def kept(service: Service, run_id: str) -> int:
    """Return how many checkpoints a run has written."""
    return len(events_of(service, run_id, "saved"))


def seconds_between(events: list[Event]) -> list[float]:
    """Return the seconds between events."""
    return [b.time - a.time for a, b in pairwise(events)]


def miss(service: Service, data: str, *, quick: bool) -> float:
    """Train to the end; returns how far off the duration was that ten steps predicted.

    The duration is that of a watching person: with tests, checkpoints and the proof of what was
    saved.
    """
    most = 12 if quick else None
    request = rq.Train(name=f"whole {data}", data=f"starter:{data}", max_steps=most)
    run_id = service.start(request).result(timeout=TIMEOUT_S).run_id
    events = service.events(run_id)
    begun = next(event for event in events if event.type == "started").time
    real = events[-1].time - begun
    predicted = service.runs.get(run_id).status().predicted_seconds or 0.0
    return abs(predicted - real) / real


def tell(steered: list[dict[str, float]], off: list[float], report: Report) -> None:
    """Add the figures."""
    for what in ASKED:
        spread = Spread([each[what] for each in steered])
        good = max(spread.values) <= MOST_BEYOND_A_STEP_S
        bar = f"<= {MOST_BEYOND_A_STEP_S:.0f} s"
        report.add(f"{what}: seconds beyond one step", f"{spread:.2f}", bar, good)
    whole = Spread([each["stopped, tested and verified"] for each in steered])
    report.add("stop until tested, read back and verified, s", f"{whole:.2f}")
    off_by = Spread([100 * each for each in off])
    report.add(
        "duration predicted after ten steps, off by, %",
        f"{off_by:.0f}",
        f"<= {100 * MOST_OFF:.0f} %",
        max(off) <= MOST_OFF,
    )


if __name__ == "__main__":
    raise SystemExit(main())
