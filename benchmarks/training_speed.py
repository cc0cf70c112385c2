"""Training speed against a hand-written packed PyTorch loop: same model, data, packs and maths."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from backend import requests as rq
from backend.settings import STARTER
from benchmarks import models
from benchmarks.interleave import Pairs, interleaved
from benchmarks.our_training import OurTraining, documents, plan, train_request
from benchmarks.packed_loop import train_by_hand
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed
from benchmarks.speed import Speed

BAR, AIM = 0.90, 1.2
PIRATE = STARTER / "data" / "pirate" / "train.jsonl"


@dataclass(frozen=True)
class Case:
    """A model, a data file and a token budget; `judged` by the bar, or only told."""

    title: str
    model: Path
    data: Path
    budget: int
    judged: bool


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--steps", type=int, default=20, help="steps of each run (default 20)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    chosen, words = read_flags(parser, arguments, pairs=1, steps=2)
    report = Report("training_speed", "Training speed against a hand-written packed loop", words)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, OurTraining() as ours:
        for case in cases(Path(folder), quick=chosen.quick):
            measure(case, ours, chosen.pairs, chosen.steps, chosen.precision, report)
    report.facts = {
        "threads": f"{torch.get_num_threads()} on both sides, which take turns in one process",
        "runs": f"{chosen.pairs} pairs a case, {chosen.steps} steps each, after an uncounted run",
    }
    return report.finish(save=chosen.save)


def cases(folder: Path, *, quick: bool) -> Iterator[Case]:
    """Return what is measured; a quick run takes a tiny model only, which is not judged."""
    model = models.random_llama(folder / "llama", models.TINY if quick else models.LLAMA_32M)
    skewed = write_skewed(folder / "skewed.jsonl", 60 if quick else 600)
    name = models.describe(model)
    for budget in (600,) if quick else (600, 1024):
        yield Case(f"{name}, {budget} tokens a step", model, skewed, budget, judged=not quick)
    if not quick:
        title = "starter model, pirate, 1024 tokens a step"
        yield Case(title, models.STARTER_MODEL, PIRATE, 1024, judged=False)


def measure(
    case: Case, ours: OurTraining, pairs: int, steps: int, precision: str, report: Report
) -> None:
    """Measure one case: both sides in turns, after one run of each that is not counted."""
    train = train_request(case.data, budget=case.budget, max_steps=steps, precision=precision)
    train, packs = with_packs(train, case.model)
    pack_tokens = [sum(map(len, pack)) for pack in packs]
    # The first run lets the engine choose the precision; both sides then compute in that one.
    chosen = ours.run(case.model, train, pack_tokens).precision
    train = train.model_copy(update={"precision": chosen})
    train_by_hand(case.model, train, packs, chosen)
    found = interleaved(
        lambda: ours.run(case.model, train, pack_tokens),
        lambda: train_by_hand(case.model, train, packs, chosen),
        pairs=pairs,
    )
    tell(case, found, sum(map(len, packs)) / len(packs), report)


def with_packs(train: rq.Train, model: Path) -> tuple[rq.Train, list[list]]:
    """Return the training with as many epochs as its steps need, and its packs of documents."""
    examples = documents(train, model)
    total = sum(len(example) for example in examples)
    assert train.max_steps is not None
    epochs = 1 + 2 * train.max_steps * train.tokens_per_step // total
    train = train.model_copy(update={"epochs": float(epochs)})
    return train, [[examples[number] for number in pack] for pack in plan(train, examples)]


def tell(case: Case, found: Pairs[Speed], documents_a_pack: float, report: Report) -> None:
    """Add a case's figures; what both sides learned shows that they did the same."""
    ratio = found.ratios(lambda speed: speed.steps)
    bar = f">= {BAR:.2f}, aim {AIM:.1f}" if case.judged else ""
    good = ratio.median >= BAR if case.judged else None
    report.add(f"{case.title}: ours / loop", f"{ratio:.2f}", bar, good)
    wall = found.ratios(lambda speed: speed.wall)
    report.add("the same by the clock on the wall, events and all", f"{wall:.2f}")
    ours, loop = found.ours[-1], found.peer[-1]
    apart = max(abs(ours.first_loss - loop.first_loss), abs(ours.last_loss - loop.last_loss))
    report.notes.append(
        f"{case.title}: {ours.precision}, {documents_a_pack:.0f} documents a pack; last pair "
        f"{ours.steps:,.0f} and {loop.steps:,.0f} tokens/s; loss {ours.first_loss:.4f} to "
        f"{ours.last_loss:.4f} in ours, at most {apart:.1e} away in the loop.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
