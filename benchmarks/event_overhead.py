"""What events and a page's requests cost training: the real app watched, against silence.

What a browser on the same cores costs is in `watched_training`.
"""

import subprocess
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from backend import Event, Service, Settings
from backend import requests as rq
from benchmarks import models
from benchmarks.app_process import App
from benchmarks.interleave import Pairs, Spread, interleaved
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed
from benchmarks.watching_page import WatchingPage

MOST_OVERHEAD = 0.02
MOST_CORE = 0.05
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Trained:
    """One run: steps a second by the wall clock, and the share of a core that the page took."""

    steps_a_second: float
    core: float = 0.0


def main(arguments: list[str] | None = None) -> int:
    """Measure both sides and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--steps", type=int, default=400, help="steps of each run (default 400)")
    parser.add_argument("--model", choices=("starter", "llama"), default="starter")
    chosen, words = read_flags(parser, arguments, pairs=1, steps=3)
    report = Report("event_overhead", "What events and a watching page cost training", words)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), chosen, report)
    return report.finish(save=chosen.save)


def measure(folder: Path, chosen: Namespace, report: Report) -> None:
    """Train in turns: in the app with a page open, and in silence."""
    with App() as app, silent_service(folder / "silent") as silent:
        app.wait_for_page()
        app.wait_for_model()
        data = write_skewed(app.workspace / "skewed.jsonl", 300)
        source = "starter"
        if chosen.model == "llama":  # inside the workspace, where the page may read
            source = str(models.random_llama(app.workspace / "llama"))
        train = run_request(data, chosen.steps)
        names = (f"benchmark {number}" for number in count(1))

        def watched() -> Trained:
            return watched_run(app, source, train, next(names))

        def unwatched() -> Trained:
            return silent_run(silent, source, train, next(names))

        if not chosen.quick:  # the first run of each is not counted
            watched(), unwatched()
        found = interleaved(watched, unwatched, pairs=chosen.pairs)
    tell(found, train, chosen.model, report)


def run_request(data: Path, steps: int) -> rq.Train:
    """Return the training of both sides: no tests between steps, and one precision."""
    return rq.Train(
        name="benchmark",
        data=str(data),
        eval_share=0.0,
        epochs=200.0,
        max_steps=steps,
        precision="fp32",
    )


def tell(found: Pairs[Trained], train: rq.Train, model: str, report: Report) -> None:
    """Add the figures."""
    cost = Spread([1 - ratio for ratio in found.ratios(lambda run: run.steps_a_second).values])
    core = Spread([run.core for run in found.ours])
    report.add(
        "cost of events and of a page's requests on training speed",
        f"{cost:.1%}",
        f"<= {MOST_OVERHEAD:.0%}",
        cost.median <= MOST_OVERHEAD,
    )
    report.add(
        "the page's process, share of a core while training",
        f"{core:.1%}",
        f"<= {MOST_CORE:.0%}",
        core.median <= MOST_CORE,
    )
    report.facts = {
        "runs": f"{len(found.ours)} pairs, {train.max_steps} steps each, {model} model, "
        f"{train.tokens_per_step} tokens a step, fp32, after a run of each that is not counted",
        "last pair": f"{found.ours[-1].steps_a_second:.2f} steps/s watched, "
        f"{found.peer[-1].steps_a_second:.2f} in silence",
    }
    report.notes.append(
        "Both sides train in a worker process of their own; steps are timed from the end of the "
        "first to the end of the last. Watched: `app.py`, with the requests of an open page (what "
        "is new every second, the chart's points every two). Silence: no app, and a "
        "worker whose events, status and progress are off; Trainer's own step log stays.\n"
    )


def watched_run(app: App, source: str, train: rq.Train, name: str) -> Trained:
    """Train in the app while a page looks on."""
    app.call("load_model", {"source": source})
    request = {**train.model_dump(mode="json"), "name": name}
    with WatchingPage(app.url) as watching:
        run_id = app.call("train", request)["run_id"]
        watching.watch(run_id)
        while app.run_status(run_id).step == 0:
            time.sleep(0.1)
        began, cpu = time.monotonic(), app.cpu_seconds()
        while app.run_status(run_id).state == "running":
            time.sleep(0.5)
        core = (app.cpu_seconds() - cpu) / (time.monotonic() - began)
        app.wait_for_run(run_id)
    events = [Event.model_validate(event) for event in app.call("events", run_id, 0)]
    return Trained(steps_a_second(events), core)


def silent_run(service: Service, source: str, train: rq.Train, name: str) -> Trained:
    """Train with nobody told and nobody looking."""
    service.start(rq.LoadModel(source=source)).result(TIMEOUT_S)
    job = service.start(train.model_copy(update={"name": name}))
    job.result(TIMEOUT_S)
    assert job.run_id is not None
    return Trained(steps_a_second(service.events(job.run_id)))


def steps_a_second(events: list[Event]) -> float:
    """Return the speed from the end of the first step to the end of the last."""
    ended = [event.time for event in events if event.type == "step"]
    return (len(ended) - 1) / (ended[-1] - ended[0])


@contextmanager
def silent_service(workspace: Path) -> Iterator[Service]:
    """Open a service whose worker tells nothing."""

    def quiet_popen(command: list[str], **options: object) -> subprocess.Popen:
        named = [word.replace("backend.engine", "benchmarks.quiet_worker") for word in command]
        return subprocess.Popen(named, **options)

    quiet = SimpleNamespace(**{**vars(subprocess), "Popen": quiet_popen})
    with patch("backend.service.worker_process.subprocess", quiet):
        service = Service(Settings(workspace=workspace))
    with service:
        yield service


if __name__ == "__main__":
    raise SystemExit(main())
