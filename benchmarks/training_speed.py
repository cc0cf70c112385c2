"""Training speed through the worker against a hand-written packed loop: same model, data, packs.

The worker is the one that the app starts, in its environment and with its events; the loop has a
process of its own, in the environment of this command, and the precision in which it is faster.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from backend.settings import STARTER
from benchmarks import models
from benchmarks.conditions import bf16_instructions
from benchmarks.interleave import Pairs, interleaved
from benchmarks.our_training import OurTraining, documents, plan, train_request
from benchmarks.packed_loop import train_by_hand
from benchmarks.peer import Peer
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed
from benchmarks.speed import Speed
from tests.real_documents import write_questions

TARGET, TARGET_WITH_BF16, LEAST = 0.97, 1.1, 0.90
PIRATE = STARTER / "data" / "pirate" / "train.jsonl"
REAL_ROWS = 128
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Case:
    """A model, a data file and a token budget; `target` of ours / loop, None where not judged."""

    title: str
    model: Path
    data: Path
    budget: int
    target: float | None = None


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--steps", type=int, default=20, help="steps of each run (default 20)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--only-real", action="store_true", help="the case with real text alone")
    chosen, words = read_flags(parser, arguments, pairs=1, steps=2)
    report = Report("training_speed", "Training speed against a hand-written packed loop", words)
    with tempfile.TemporaryDirectory() as folder, OurTraining() as ours, Peer() as peer:
        for case in cases(Path(folder), quick=chosen.quick, only_real=chosen.only_real):
            measure(case, ours, peer, chosen, report)
    report.facts = {
        "threads": f"{torch.get_num_threads()} on both sides, each with a process of its own",
        "runs": f"{chosen.pairs} pairs a case, {chosen.steps} steps each, after uncounted runs",
    }
    return report.finish(save=chosen.save)


def cases(folder: Path, *, quick: bool, only_real: bool) -> Iterator[Case]:
    """Return what is measured; a quick run takes a tiny model only, which is not judged."""
    model = models.random_llama(folder / "llama", models.TINY if quick else models.LLAMA_32M)
    name = models.describe(model)
    real = write_questions(folder / "questions.jsonl", REAL_ROWS)
    target = TARGET_WITH_BF16 if bf16_instructions() else TARGET
    title = f"{name}, real text, 600 tokens a step"
    yield Case(title, model, real, 600, None if quick else target)
    if quick or only_real:
        return
    skewed = write_skewed(folder / "skewed.jsonl", 600)
    for budget in (600, 1024):
        yield Case(f"{name}, {budget} tokens a step", model, skewed, budget, LEAST)
    title = "starter model, pirate, 1024 tokens a step"
    yield Case(title, models.STARTER_MODEL, PIRATE, 1024)


def measure(case: Case, ours: OurTraining, peer: Peer, chosen: Namespace, report: Report) -> None:
    """Measure one case: both sides in turns, after runs of each that are not counted."""
    train = train_request(
        case.data, budget=case.budget, max_steps=chosen.steps, precision=chosen.precision
    )
    train, packs = with_packs(train, case.model)
    pack_tokens = [sum(map(len, pack)) for pack in packs]
    ours.run(case.model, train, pack_tokens)
    # the first run in a precision is slow; the second tells which one suits the loop
    tries = {name: train_loop(peer, case, train, packs, name) for name in PRECISIONS * 2}
    best = max(tries, key=lambda name: tries[name].steps)
    found = interleaved(
        lambda: ours.run(case.model, train, pack_tokens),
        lambda: train_loop(peer, case, train, packs, best),
        pairs=chosen.pairs,
    )
    tell(case, found, sum(map(len, packs)) / len(packs), report)


def train_loop(
    peer: Peer, case: Case, train: rq.Train, packs: list[list[Tokens]], precision: str
) -> Speed:
    """Let the loop train once."""
    return peer.run(train_by_hand, case.model, train, packs, precision)


def with_packs(train: rq.Train, model: Path) -> tuple[rq.Train, list[list[Tokens]]]:
    """Return the training with as many epochs as its steps need, and its packs of documents."""
    examples = documents(train, model)
    total = sum(len(example) for example in examples)
    assert train.max_steps is not None
    epochs = 1 + 2 * train.max_steps * train.tokens_per_step // total
    train = train.model_copy(update={"epochs": float(epochs)})
    return train, [[examples[number] for number in pack] for pack in plan(train, examples)]


def tell(case: Case, found: Pairs[Speed], documents_a_pack: float, report: Report) -> None:
    """Add a case's figures; the losses of both sides show that they did the same."""
    ratio = found.ratios(lambda speed: speed.steps)
    bar = f">= {case.target}" if case.target else ""
    good = ratio.median >= case.target if case.target else None
    report.add(f"{case.title}: ours / loop", f"{ratio:.2f}", bar, good)
    wall = found.ratios(lambda speed: speed.wall)
    report.add("the same by the clock on the wall, events and all", f"{wall:.2f}")
    ours, loop = found.ours[-1], found.peer[-1]
    apart = max(abs(ours.first_loss - loop.first_loss), abs(ours.last_loss - loop.last_loss))
    report.notes.append(
        f"{case.title}: ours in {ours.precision}, the loop in {loop.precision}, "
        f"{documents_a_pack:.0f} documents a pack; last pair "
        f"{ours.steps:,.0f} and {loop.steps:,.0f} tokens/s; loss {ours.first_loss:.4f} to "
        f"{ours.last_loss:.4f} in ours, at most {apart:.1e} away in the loop.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
