"""What a page that watches a run costs its training, in Chromium on the same cores.

One run goes on all the time; the page is opened and closed in turns. So both sides have the same
process, model and data.
"""

import contextlib
import time
from argparse import Namespace
from dataclasses import dataclass, field

import psutil
from playwright.sync_api import Page

from backend import Event
from benchmarks import models
from benchmarks.app_process import App
from benchmarks.browser import empty_page, visit, wait_for_curve
from benchmarks.interleave import Pairs, Spread, interleaved
from benchmarks.our_training import train_request
from benchmarks.page_latency import seconds_until
from benchmarks.report import Report, flags, read_flags
from tests.real_documents import write_questions

LEAST_SPEED, MOST_CORE, MOST_SECONDS_TO_ATTACH = 0.93, 0.05, 2.0
ROWS, BUDGET, ENDLESS = 128, 600, 100_000
SETTLE_S = 3.0
"""After opening or closing the page, before a window begins."""


@dataclass
class Window:
    """Some seconds of the run: when, and the share of a core that app and browser took."""

    begin: float
    end: float
    app: float
    browser: float
    steps_a_second: float = 0.0


@dataclass
class Opened:
    """The seconds from opening a page until it shows the run's step."""

    reload: list[float] = field(default_factory=list)
    second_tab: list[float] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Measure all windows and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each window (default 15)")
    parser.add_argument("--model", choices=("llama", "smollm2", "starter"), default="llama")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    chosen, words = read_flags(parser, arguments, pairs=1, seconds=5.0, model="starter")
    report = Report("watched_training", "What a watching page costs a training", words)
    with empty_page() as page, App() as app:
        app.wait_for_page()
        app.wait_for_model()
        run_id = start_endless(app, chosen)
        pairs, opened = measure(app, page, run_id, chosen)
        fill_in_speeds(app, run_id, pairs)
        told = app.run_status(run_id)
        app.call("stop")
    tell(pairs, opened, report)
    report.facts = {
        "model": f"{chosen.model}, trained in {told.precision}, {BUDGET} tokens a step",
        "windows": f"{len(pairs.ours)} pairs of {chosen.seconds:.0f} s in one run; last pair: "
        f"{pairs.ours[-1].steps_a_second:.2f} steps/s watched, "
        f"{pairs.peer[-1].steps_a_second:.2f} alone",
    }
    return report.finish(save=chosen.save)


def start_endless(app: App, chosen: Namespace) -> str:
    """Start a run that ends long after the measurement; returns its id after some steps."""
    source = chosen.model
    if source == "llama":  # inside the workspace, where the page may read
        source = str(models.random_llama(app.workspace / "llama"))
    app.call("load_model", {"source": source})
    data = write_questions(app.workspace / "questions.jsonl", ROWS)
    request = train_request(
        data, budget=BUDGET, epochs=900.0, max_steps=ENDLESS, precision=chosen.precision
    )
    run_id = str(app.call("train", request.model_dump(mode="json"))["run_id"])
    while app.run_status(run_id).step < 5:  # the first steps are slower
        time.sleep(0.2)
    return run_id


def measure(app: App, page: Page, run_id: str, chosen: Namespace) -> tuple[Pairs[Window], Opened]:
    """Take the windows in turns, then reload the page and open a second tab."""

    def watched() -> Window:
        visit(page, app.url)
        wait_for_curve(page)
        return window(app, page, chosen.seconds)

    def alone() -> Window:
        page.goto("about:blank")
        return window(app, page, chosen.seconds)

    pairs = interleaved(watched, alone, pairs=chosen.pairs)
    visit(page, app.url)
    wait_for_curve(page)
    opened = Opened()
    for _ in range(chosen.pairs):
        opened.reload.append(seconds_until(page.reload, page, app, run_id))
        page.wait_for_timeout(1000)
        second = page.context.new_page()
        took = seconds_until(lambda tab=second: tab.goto(app.url), second, app, run_id)
        opened.second_tab.append(took)
        second.close()
    return pairs, opened


def window(app: App, page: Page, seconds: float) -> Window:
    """Let the run go on for some seconds, and note what app and browser take."""
    page.wait_for_timeout(SETTLE_S * 1000)
    begin, app_before, browser_before = time.time(), app.cpu_seconds(), browser_seconds()
    page.wait_for_timeout(seconds * 1000)
    end = time.time()
    taken = app.cpu_seconds() - app_before, browser_seconds() - browser_before
    return Window(begin, end, taken[0] / (end - begin), taken[1] / (end - begin))


def browser_seconds() -> float:
    """Return the processor time that all of Chromium's processes have taken."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "chrom" in process.name():
                times = process.cpu_times()
                total += times.user + times.system
    return total


def fill_in_speeds(app: App, run_id: str, pairs: Pairs[Window]) -> None:
    """Take the speed of each window from the run's events: from its first step to its last."""
    events = [Event.model_validate(event) for event in app.call("events", run_id, 0)]
    ended = [event.time for event in events if event.type == "step"]
    for each in (*pairs.ours, *pairs.peer):
        inside = [at for at in ended if each.begin <= at <= each.end]
        if len(inside) < 2:
            raise RuntimeError("A window is too short for two steps: give more --seconds.")
        each.steps_a_second = (len(inside) - 1) / (inside[-1] - inside[0])


def tell(pairs: Pairs[Window], opened: Opened, report: Report) -> None:
    """Add the figures."""
    speed = pairs.ratios(lambda each: each.steps_a_second)
    bar = f">= {LEAST_SPEED}"
    good = speed.median >= LEAST_SPEED
    report.add("training while a page watches / no page", f"{speed:.3f}", bar, good)
    core = Spread([each.app for each in pairs.ours])
    bar, good = f"<= {MOST_CORE:.0%}", core.median <= MOST_CORE
    report.add("the page's process while a page watches, share of a core", f"{core:.1%}", bar, good)
    unwatched = Spread([each.app for each in pairs.peer])
    report.add("the same without a page", f"{unwatched:.1%}")
    browser = Spread([each.browser for each in pairs.ours])
    report.add("Chromium while a page watches, share of a core", f"{browser:.1%}")
    for what, values in (("page reloaded", opened.reload), ("second tab", opened.second_tab)):
        spread = Spread(values)
        good = spread.median <= MOST_SECONDS_TO_ATTACH
        bar = f"<= {MOST_SECONDS_TO_ATTACH:.0f} s"
        report.add(f"{what} until it shows the run's step, s", f"{spread:.2f}", bar, good)


if __name__ == "__main__":
    raise SystemExit(main())
