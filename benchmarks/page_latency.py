"""How soon a page shows what is: a killed worker, a reload and a second tab, in Chromium."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from playwright.sync_api import Page

from benchmarks.app_process import App
from benchmarks.browser import empty_page, press_train, visit, wait_for_check, wait_for_curve
from benchmarks.interleave import Spread
from benchmarks.report import Report, flags, read_flags

MOST_SECONDS_AFTER_DEATH = 3.0
MOST_SECONDS_TO_ATTACH = 2.0
BACK_AGAIN_MS = 300_000
"""The longest that a base may take to come back before the next round; not measured here."""
GONE = ".aw-stage .aw-note.bad"
STEP = (
    "least => [...document.querySelectorAll('.aw-stage .aw-numbers strong')].slice(0, 1)"
    ".some(each => parseInt(each.textContent.replaceAll(',', '')) >= least)"
)


@dataclass(frozen=True)
class Latency:
    """One run's figures, in seconds."""

    reload: float
    second_tab: float
    death: float


def main(arguments: list[str] | None = None) -> int:
    """Measure a few times in one app and report."""
    parser = flags(__doc__, repeats="runs")
    chosen, words = read_flags(parser, arguments, runs=1)
    report = Report("page_latency", "How soon a page shows what is", words)
    with empty_page() as page, App() as app:
        app.wait_for_page()
        visit(page, app.url)
        app.wait_for_model()
        found = [measure(app, page) for _ in range(chosen.runs)]
    tell(found, report)
    return report.finish(save=chosen.save)


def measure(app: App, page: Page) -> Latency:
    """Start a long run, look at it in three ways, and kill the worker under it."""
    visit(page, app.url)
    run_id = start_long_run(app, page)
    reload = seconds_until(lambda: page.reload(), page, app, run_id)
    second = page.context.new_page()
    attach = seconds_until(lambda: second.goto(app.url), second, app, run_id)
    second.close()
    death = seconds_to_notice_death(app, page)
    page.wait_for_function("() => !document.querySelector('.aw-job-title')", timeout=BACK_AGAIN_MS)
    app.wait_for_model()
    return Latency(reload, attach, death)


def start_long_run(app: App, page: Page) -> str:
    """Press Train for more epochs than anybody waits for, and wait until the curve begins."""
    page.locator("#train-epochs input").fill("900")
    page.keyboard.press("Tab")
    wait_for_check(page)
    press_train(page)
    run_id = app.wait_for_training()  # an earlier run's curve may still be there
    while not app.run_status(run_id).step:
        time.sleep(0.1)
    wait_for_curve(page)
    return run_id


def seconds_until(open_it: Callable[[], object], page: Page, app: App, run_id: str) -> float:
    """Return the seconds from opening a page until it shows the step that the run had then."""
    least = app.run_status(run_id).step
    began = time.perf_counter()
    open_it()
    page.wait_for_function(STEP, arg=least)
    return time.perf_counter() - began


def seconds_to_notice_death(app: App, page: Page) -> float:
    """Kill the worker and return the seconds until the page says so."""
    assert page.locator(GONE).count() == 0
    worker_of(app).kill()
    began = time.perf_counter()
    page.wait_for_selector(GONE)
    return time.perf_counter() - began


def worker_of(app: App) -> psutil.Process:
    """Return the process that holds the model."""
    children = app.process.children(recursive=True)
    return next(child for child in children if "backend.engine" in child.cmdline())


def tell(found: list[Latency], report: Report) -> None:
    """Add the figures."""
    figures = (
        ("worker killed until the page says so, s", "death", MOST_SECONDS_AFTER_DEATH),
        ("page reloaded until it shows the run's step, s", "reload", MOST_SECONDS_TO_ATTACH),
        ("second tab opened until it shows the run's step, s", "second_tab",
         MOST_SECONDS_TO_ATTACH),
    )  # fmt: skip
    for what, name, most in figures:
        spread = Spread([getattr(each, name) for each in found])
        report.add(what, f"{spread:.2f}", f"<= {most:.0f} s", max(spread.values) <= most)
    report.facts = {"runs": f"{len(found)}, in one app, headless Chromium"}


if __name__ == "__main__":
    raise SystemExit(main())
