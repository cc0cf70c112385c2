"""How long the worker's threads should wait awake for each other: alone, and beside an open page.

Each policy has an app of its own with a warm worker, and they take turns. The open page is one in
headless Chromium that watches the run.
"""

import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from backend.service.worker_process import SPIN_COUNT
from benchmarks import models
from benchmarks.app_process import App
from benchmarks.browser import open_page
from benchmarks.interleave import Spread
from benchmarks.our_training import train_request
from benchmarks.report import Report, flags, read_flags
from tests.real_documents import write_questions

PASSIVE = "PASSIVE"
SPINS = (3_000, 10_000, 100_000, 300_000)
ALONE, WATCHED = "alone", "beside an open page"
OF_THE_BEST, OF_PASSIVE = 0.95, 1.0
BUDGET, ROWS, EPOCHS = 600, 128, 50.0


@dataclass
class Policy:
    """One way to wait: its app, and the tokens a second of each run, by condition."""

    name: str
    app: App
    model: Path
    data: Path
    speeds: dict[str, list[float]] = field(default_factory=lambda: {ALONE: [], WATCHED: []})


def main(arguments: list[str] | None = None) -> int:
    """Measure all policies in turns and report."""
    parser = flags(__doc__, repeats="rounds")
    parser.add_argument("--steps", type=int, default=16, help="steps of each run (default 16)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="fp32")
    parser.add_argument("--spins", type=int, nargs="+", default=SPINS, help="counts to try")
    chosen, words = read_flags(parser, arguments, rounds=1, steps=3, spins=[])
    report = Report("wait_policy", "How long the worker's threads wait awake", words)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        size = models.TINY if chosen.quick else models.LLAMA_32M
        model = models.random_llama(Path(folder) / "llama", size)
        policies = [
            stack.enter_context(started(name, environment, model))
            for name, environment in environments(chosen.spins).items()
        ]
        measure(policies, chosen)
        report.facts = {
            "model": models.describe(model),
            "runs": f"{chosen.rounds} rounds, {chosen.steps} steps each, {BUDGET} tokens a step, "
            f"{chosen.precision}, after a run of each that is not counted",
        }
    for condition in (ALONE, WATCHED):
        tell(policies, condition, report)
    return report.finish(save=chosen.save)


def environments(spins: list[int]) -> dict[str, Mapping[str, str]]:
    """Return the environment of each policy's app, as a person sets it; the last is our own."""
    counts = {_spins(count): {"GOMP_SPINCOUNT": str(count)} for count in (*spins, SPIN_COUNT)}
    return {PASSIVE: {"OMP_WAIT_POLICY": "PASSIVE"}, **counts}


@contextmanager
def started(name: str, environment: Mapping[str, str], model: Path) -> Iterator[Policy]:
    """Start an app whose worker has loaded the model."""
    with App(environment) as app:
        app.wait_for_page()
        app.wait_for_model()
        inside = app.workspace / "llama"  # where the page may read
        shutil.copytree(model, inside)
        data = write_questions(app.workspace / "questions.jsonl", ROWS)
        app.call("load_model", {"source": str(inside)})
        yield Policy(name, app, inside, data)


def measure(policies: list[Policy], chosen: Namespace) -> None:
    """Let the policies take turns, alone and beside a page; who begins changes."""
    for number in range(chosen.quick, chosen.rounds + 1):
        first = number % len(policies)
        for condition in (ALONE, WATCHED):
            for policy in policies[first:] + policies[:first]:
                speed = train(policy, f"{condition} {number}", condition, chosen)
                if number:  # round 0 is not counted
                    policy.speeds[condition].append(speed)


def train(policy: Policy, name: str, condition: str, chosen: Namespace) -> float:
    """Train once; returns the tokens a second that the app reports."""
    request = train_request(
        policy.data,
        budget=BUDGET,
        name=name,
        epochs=EPOCHS,
        max_steps=chosen.steps,
        precision=chosen.precision,
    )
    with open_page(policy.app.url) if condition == WATCHED else nullcontext():
        run_id = policy.app.call("train", request.model_dump(mode="json"))["run_id"]
        status = policy.app.wait_for_run(run_id)
    return status.tokens_per_second or 0.0


def tell(policies: list[Policy], condition: str, report: Report) -> None:
    """Add each policy's speed; only the count that we set is judged."""
    passive = policies[0].speeds[condition]
    best = max(Spread(policy.speeds[condition]).median for policy in policies)
    for policy in policies:
        speeds = Spread(policy.speeds[condition])
        report.add(f"{condition}, {policy.name}: tokens/s", f"{speeds:,.0f}")
        if policy.name != _spins(SPIN_COUNT):
            continue
        pairs = zip(policy.speeds[condition], passive, strict=True)
        to_passive = Spread([ours / theirs for ours, theirs in pairs])
        if condition == ALONE:
            share = speeds.median / best
            good = share >= OF_THE_BEST
            report.add("ours / the best, alone", f"{share:.2f}", f">= {OF_THE_BEST}", good)
        bar = f">= {OF_PASSIVE}"
        good = to_passive.median >= OF_PASSIVE
        report.add(f"ours / PASSIVE, {condition}", f"{to_passive:.2f}", bar, good)


def _spins(count: int) -> str:
    return f"{count:,} turns"


if __name__ == "__main__":
    raise SystemExit(main())
