"""Speed against the plain Trainer + PEFT script: useful tokens a second on skewed lengths."""

import statistics
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from benchmarks import models
from benchmarks.interleave import Pairs, interleaved
from benchmarks.our_training import (
    OurTraining,
    as_many_tokens,
    documents,
    plan,
    train_request,
)
from benchmarks.peer import Peer
from benchmarks.plain_script import BATCH, train_plainly
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed
from benchmarks.speed import Speed

BAR = 2.0
PRECISIONS = ("fp32", "bf16")
SAMPLE = 16
"""Examples that tell which precision is the faster one: two batches, of which one counts."""


def main(arguments: list[str] | None = None) -> int:
    """Measure both sides and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--rows", type=int, default=120, help="examples in the data (default 120)")
    parser.add_argument("--grouped", action="store_true", help="let the script group by length")
    chosen, words = read_flags(parser, arguments, pairs=1, rows=24)
    report = Report("trainer_script", "Training speed against a plain Trainer script", words)
    with tempfile.TemporaryDirectory() as folder, OurTraining() as ours, Peer() as peer:
        size = models.TINY if chosen.quick else models.LLAMA_32M
        model = models.random_llama(Path(folder) / "llama", size)
        data = write_skewed(Path(folder) / "skewed.jsonl", chosen.rows)
        measure(model, data, ours, peer, chosen, report)
        report.facts = {
            "model": models.describe(model),
            "threads": f"{torch.get_num_threads()} on both sides, each with a process of its own",
            "runs": f"{chosen.pairs} pairs, one epoch each, after runs that are not counted",
        }
    return report.finish(save=chosen.save)


def measure(
    model: Path, data: Path, ours: OurTraining, peer: Peer, chosen: Namespace, report: Report
) -> None:
    """Measure both sides in turns, the script in the precision that suits it best."""
    train = train_request(data, budget=rq.Train.model_fields["tokens_per_step"].default, epochs=1)
    examples = documents(train, model)
    train = train.model_copy(update={"tokens_per_step": as_many_tokens(examples)})
    pack_tokens = [sum(len(examples[n]) for n in pack) for pack in plan(train, examples)]
    ours.run(model, train, pack_tokens)
    tries = PRECISIONS if chosen.quick else PRECISIONS * 2  # the first of each is not counted
    best = best_precision(model, train, examples, peer, tries, report)
    found = interleaved(
        lambda: ours.run(model, train, pack_tokens),
        lambda: peer.run(train_plainly, model, train, examples, best, grouped=chosen.grouped),
        pairs=chosen.pairs,
    )
    tell(found, report, grouped=chosen.grouped)
    describe(found.ours[-1], found.peer[-1], train, examples, report)


def tell(found: Pairs[Speed], report: Report, *, grouped: bool) -> None:
    """Add the figures; a script that groups lengths is a better one, and only told."""
    ratio = found.ratios(lambda speed: speed.steps)
    script = "script with grouped lengths" if grouped else "script"
    judged = None if grouped else ratio.median >= BAR
    report.add(f"ours / {script}", f"{ratio:.2f}", "" if grouped else f">= {BAR:.1f}", judged)
    wall = found.ratios(lambda speed: speed.wall)
    report.add("the same by the clock on the wall, events and all", f"{wall:.2f}")


def best_precision(
    model: Path,
    train: rq.Train,
    examples: list[Tokens],
    peer: Peer,
    tries: Sequence[str],
    report: Report,
) -> str:
    """Try the script in both precisions; the last try of each counts. Returns the faster."""
    speeds = {}
    some = examples[:: max(1, len(examples) // SAMPLE)]
    for precision in tries:
        speeds[precision] = peer.run(train_plainly, model, train, some, precision).steps
    words = ", ".join(f"{speed:,.0f} tokens/s in {name}" for name, speed in speeds.items())
    report.notes.append(f"Script's precision: {words}; the faster one is measured.\n")
    return max(speeds, key=speeds.__getitem__)


def describe(
    ours: Speed, script: Speed, train: rq.Train, examples: list[Tokens], report: Report
) -> None:
    """Say what was compared."""
    lengths = sorted(map(len, examples))
    high = lengths[int(0.99 * (len(lengths) - 1))]
    report.notes += [
        f"Data: {len(lengths)} conversations, median {statistics.median(lengths):.0f} tokens, "
        f"99th percentile {high}, mean {statistics.mean(lengths):.0f}; only answers are learned.\n",
        f"Ours: {ours.precision}, {train.tokens_per_step} tokens a step, {ours.count} steps. "
        f"Script: {script.precision}, {BATCH} examples a batch padded to the longest, "
        f"{script.count} steps. Last pair {ours.steps:,.0f} and {script.steps:,.0f} tokens/s.\n",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
