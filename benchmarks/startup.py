"""How soon the app is there and a training begins, and how much memory the page's process takes."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from playwright.sync_api import Page

from benchmarks.app_process import App
from benchmarks.browser import empty_page, press_train, visit, wait_for_check, wait_for_curve
from benchmarks.interleave import Spread
from benchmarks.report import Report, flags, read_flags
from benchmarks.watching_page import WatchingPage

MOST_SECONDS = 5.0
MOST_BYTES = 250_000_000
FIRST_STEP_S = 120.0
NAN = float("nan")


@dataclass(frozen=True)
class Start:
    """One start of the app; seconds from the command, and from the press of Train."""

    opened: float
    phases: dict[str, float]
    memory: int
    torch: bool
    in_browser: float = NAN
    first_point: float = NAN

    @property
    def first_step(self) -> float:
        return self.phases["step"]


def main(arguments: list[str] | None = None) -> int:
    """Measure a few starts and report."""
    parser = flags(__doc__, repeats="runs")
    parser.add_argument("--browser", action="store_true", help="also open the page in Chromium")
    chosen, words = read_flags(parser, arguments, runs=1)
    report = Report("startup", "Start of the app and of a training", words)
    if not chosen.quick:
        with App() as app:  # the first start of all reads the disk; the bar is for a warm one
            app.wait_for_page()
    starts = [measure(browser=chosen.browser) for _ in range(chosen.runs)]
    tell(starts, report, browser=chosen.browser)
    return report.finish(save=chosen.save)


def measure(*, browser: bool) -> Start:
    """Start the app, look at it as a page does, train one thing."""
    if browser:
        return measure_in_browser()
    with App() as app:
        opened = app.wait_for_page()
        app.wait_for_model()
        with WatchingPage(app.url):
            return look(app, opened, None)


def measure_in_browser() -> Start:
    """Do the same with a real page, in a browser that is open before."""
    with empty_page() as page, App() as app:
        opened = app.wait_for_page()
        visit(page, app.url)
        in_browser = time.perf_counter() - app.started
        app.wait_for_model()
        return replace(look(app, opened, page), in_browser=in_browser)


def look(app: App, opened: float, page: Page | None) -> Start:
    """Press Train and look at the process once the run has begun."""
    began = time.perf_counter()
    point = NAN
    if page is not None:
        wait_for_check(page)
        began = time.perf_counter()
        press_train(page)
        wait_for_curve(page)
        point = time.perf_counter() - began
        run_id = app.call("snapshot")["job"]["run_id"]
    else:
        run_id = app.call("train", {"name": "pirate", "data": "starter:pirate"})["run_id"]
    phases = first_step(app, run_id, began)
    memory, torch = app.process.memory_info().rss, has_torch(app.process.pid)
    app.call("stop")
    return Start(opened, phases, memory, torch, first_point=point)


def first_step(app: App, run_id: str, began: float) -> dict[str, float]:
    """Return the seconds from the press to each event up to the first step's, by the run's file."""
    pressed = time.time() - (time.perf_counter() - began)
    while time.time() - pressed < FIRST_STEP_S:
        events = {e["type"]: e["time"] - pressed for e in reversed(app.call("events", run_id, 0))}
        if "step" in events:
            return {type: seconds for type, seconds in events.items() if seconds <= events["step"]}
        time.sleep(0.05)
    raise RuntimeError(f"No step within {FIRST_STEP_S:.0f} s.\n{app.log()}")


def has_torch(pid: int) -> bool:
    """Tell whether a process has PyTorch's libraries mapped."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


def tell(starts: list[Start], report: Report, *, browser: bool) -> None:
    """Add the figures."""
    opened = Spread([start.opened for start in starts])
    first = Spread([start.first_step for start in starts])
    memory = max(start.memory for start in starts)
    torch = any(start.torch for start in starts)
    bar = f"<= {MOST_SECONDS:.0f} s"
    report.add("`python app.py` until page and configuration load, s", f"{opened:.2f}", bar,
               opened.median <= MOST_SECONDS)  # fmt: skip
    report.add("Train pressed until the first step's event, worker warm, s", f"{first:.2f}", bar,
               first.median <= MOST_SECONDS)  # fmt: skip
    if browser:
        shown = Spread([start.in_browser for start in starts])
        point = Spread([start.first_point for start in starts])
        report.add("`python app.py` until the page is drawn in Chromium, s", f"{shown:.2f}", bar,
                   shown.median <= MOST_SECONDS)  # fmt: skip
        report.add("Train pressed until the curve has a point in Chromium, s", f"{point:.2f}", bar,
                   point.median <= MOST_SECONDS)  # fmt: skip
    report.add("memory of the page's process while training, at most, MB", f"{memory / 1e6:.0f}",
               f"<= {MOST_BYTES / 1e6:.0f}", memory <= MOST_BYTES)  # fmt: skip
    report.add("PyTorch in the page's process", "loaded" if torch else "not loaded", "not loaded",
               not torch)  # fmt: skip
    phases = sorted(starts[-1].phases.items(), key=lambda item: item[1])
    words = ", ".join(f"{type} after {seconds:.2f} s" for type, seconds in phases)
    report.notes.append(f"Events after Train was pressed, last start: {words}.\n")
    report.facts = {"starts": f"{len(starts)}, warm disk, empty workspace"}


if __name__ == "__main__":
    raise SystemExit(main())
