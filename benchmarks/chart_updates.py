"""How many bytes an update of the live chart takes, early and late in a long run."""

import tempfile
from contextlib import closing
from pathlib import Path

from backend import Service, Settings
from backend import requests as rq
from backend.runs.events import EventWriter
from backend.runs.run_store import Run
from benchmarks.app_process import free_port
from benchmarks.report import Report, flags, read_flags
from benchmarks.watching_page import POINTS_EVERY_S, WatchingPage
from ui.app.server import serve
from ui.serving.options import Options

MOST_BYTES = 1000
POINTS = (100, 10_000)
NEW_STEPS = (1, 10, 40)
TEST_EVERY = 50


def main(arguments: list[str] | None = None) -> int:
    """Measure updates of all sizes and report."""
    chosen, words = read_flags(flags(__doc__), arguments)
    report = Report("chart_updates", "Bytes of a chart update", words)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(workspace=Path(folder), runtime="inline")
        with Service(settings) as service:
            measure(service, report)
    report.facts = {
        "update": f"the body of the answer to a chart that asks every {POINTS_EVERY_S:.0f} s"
    }
    report.notes.append("Sizes do not depend on the machine.\n")
    return report.finish(save=chosen.save)


def measure(service: Service, report: Report) -> None:
    """Serve the real page and ask for points as its chart does."""
    port = free_port()
    page = serve(service, Options(port=port))
    try:
        for points in POINTS:
            with closing(WatchingPage(f"http://127.0.0.1:{port}")) as watching:
                ask(service, watching, points, report)
    finally:
        page.close(verbose=False)


def ask(service: Service, page: WatchingPage, points: int, report: Report) -> None:
    """Ask a run that has so many points for the whole curve, and then for what is new."""
    run = make_run(service, points)
    writer = EventWriter(run.events_file)
    first = page.points(run.id, 0)
    step, seq = points, first.json()["seq"]
    sizes: dict[int, int] = {}
    for new in NEW_STEPS:
        write_steps(writer, step, step + new)
        response = page.points(run.id, seq)
        require_news(response.json(), new)
        step, seq, sizes[new] = step + new, response.json()["seq"], len(response.content)
    writer.close()
    largest = max(sizes.values())
    shown = ", ".join(f"{size} B with {new} new" for new, size in sizes.items())
    report.add(f"update at {points:,} points", shown, f"<= {MOST_BYTES} B", largest <= MOST_BYTES)
    report.add(f"first sight of {points:,} points", f"{len(first.content) / 1000:.1f} KB")


def make_run(service: Service, points: int) -> Run:
    """Write a run's folder with so many step events, each fiftieth with a test."""
    run = service.runs.create(
        rq.Train(name=f"curve {points}"),
        base=("starter", "starter", "none"),
        adapter_id="ad_curve",
        colour="#0072B2",
    )
    writer = EventWriter(run.events_file)
    writer.write("started", step=0, total_steps=2 * points)
    write_steps(writer, 0, points)
    writer.close()
    return run


def write_steps(writer: EventWriter, begin: int, end: int) -> None:
    """Write events as a training would, with losses that need all their digits."""
    for step in range(begin + 1, end + 1):
        loss = 3.123456 / step**0.25
        writer.write("step", step=step, loss=loss, learning_rate=2.9876e-3, gradient_norm=0.512345,
                     tokens_per_second=1234.5, seconds_left=99.9)  # fmt: skip
        if step % TEST_EVERY == 0:
            writer.write("evaluation", step=step, loss=loss, exact_match=0.5, token_accuracy=0.75)


def require_news(answer: dict, new: int) -> None:
    """Make sure that an update was measured, not an empty answer or the whole curve."""
    if answer["reset"] or not 0 < len(answer["s"]) <= new:
        raise RuntimeError(f"This was no update: {answer}")


if __name__ == "__main__":
    raise SystemExit(main())
