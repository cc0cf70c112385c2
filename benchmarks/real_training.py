"""Training a real chat model through the app's worker, against what people would use instead.

SmolLM2-135M-Instruct on real questions and whole docstrings. The peers are the packed loop that
somebody who knows PyTorch writes by hand, a plain Trainer + PEFT script, and TRL's SFTTrainer with
packing; each has a process of its own, and the precision in which it is faster. Ours is the worker
that the app starts, with its events, in the precision that it chooses.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from benchmarks import models
from benchmarks.interleave import Spread
from benchmarks.our_training import OurTraining, documents, plan, train_request
from benchmarks.packed_loop import train_by_hand
from benchmarks.peer import Peer
from benchmarks.plain_script import train_plainly
from benchmarks.report import Report, flags, read_flags
from benchmarks.speed import Speed
from benchmarks.trl_script import train_with_trl
from tests.real_documents import write_questions

TARGETS = {"packed loop": 1.2, "Trainer + PEFT": 2.0, "TRL, packed": 1.4}
PRECISIONS = ("fp32", "bf16")
BUDGET = 512
Side = Callable[[str], Speed]


def main(arguments: list[str] | None = None) -> int:
    """Measure all sides in turns and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--rows", type=int, default=48, help="examples in the data (default 48)")
    parser.add_argument("--steps", type=int, default=6, help="steps of each run (default 6)")
    chosen, words = read_flags(parser, arguments, pairs=1, rows=24, steps=2)
    report = Report("real_training", "Training a real chat model", words)
    with tempfile.TemporaryDirectory() as folder, OurTraining() as ours, Peer() as peer:
        real = not chosen.quick
        model = models.smollm2(Path(folder)) if real else models.random_llama(Path(folder) / "tiny")
        data = write_questions(Path(folder) / "questions.jsonl", chosen.rows, in_full=True)
        measure(model, data, ours, peer, chosen, report)
        report.facts = {
            "model": "SmolLM2-135M-Instruct, loaded in fp32" if real else models.describe(model),
            "threads": f"{torch.get_num_threads()} on all sides, each with a process of its own",
            "runs": f"{chosen.pairs} rounds, {chosen.steps} steps each, after runs of each side "
            "in each precision that are not counted",
        }
    return report.finish(save=chosen.save)


def measure(
    model: Path, data: Path, ours: OurTraining, peer: Peer, chosen: Namespace, report: Report
) -> None:
    """Measure all sides, one after the other in each round, and from round to round reversed."""
    train = train_request(data, budget=BUDGET, max_steps=chosen.steps, epochs=8.0)
    examples = documents(train, model)
    packs = plan(train, examples)
    packed = [[examples[number] for number in pack] for pack in packs]
    pack_tokens = [sum(map(len, pack)) for pack in packed]
    sides = peers(peer, model, train, examples, packed)
    ours.run(model, train, pack_tokens)
    best = {name: _faster(side, report, name) for name, side in sides.items()}
    calls = {"ours": lambda: ours.run(model, train, pack_tokens)}
    calls |= {name: partial(side, best[name]) for name, side in sides.items()}
    found: dict[str, list[Speed]] = {name: [] for name in calls}
    for number in range(chosen.pairs):
        for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(calls[name]())
    tell(found, examples, report)


def peers(
    peer: Peer,
    model: Path,
    train: rq.Train,
    examples: list[Tokens],
    packed: list[list[Tokens]],
) -> dict[str, Side]:
    """Return the other sides, each of which trains once in a precision."""
    return {
        "packed loop": lambda name: peer.run(train_by_hand, model, train, packed, name),
        "Trainer + PEFT": lambda name: peer.run(train_plainly, model, train, examples, name),
        "TRL, packed": lambda name: peer.run(train_with_trl, model, train, examples, name),
    }


def _faster(side: Side, report: Report, name: str) -> str:
    """Return the precision in which a side is faster; the second run in each counts."""
    speeds = {precision: side(precision).steps for precision in PRECISIONS * 2}
    words = ", ".join(f"{speed:,.0f} tokens/s in {name}" for name, speed in speeds.items())
    report.notes.append(f"{name}: {words}.\n")
    return max(speeds, key=speeds.__getitem__)


def tell(found: dict[str, list[Speed]], examples: list[Tokens], report: Report) -> None:
    """Add the ratios."""
    for name, target in TARGETS.items():
        pairs = list(zip(found["ours"], found[name], strict=True))
        ratio = Spread([ours.steps / other.steps for ours, other in pairs])
        wall = Spread([ours.wall / other.wall for ours, other in pairs])
        good = ratio.median >= target
        report.add(f"ours / {name}", f"{ratio:.2f}", f">= {target:.1f}", good)
        report.add("the same by the clock on the wall, events and all", f"{wall:.2f}")
    last = ", ".join(
        f"{name} {Spread([each.steps for each in speeds]):,.0f} ({speeds[-1].precision}, "
        f"loss {speeds[-1].first_loss:.3f} to {speeds[-1].last_loss:.3f})"
        for name, speeds in found.items()
    )
    total = sum(map(len, examples))
    report.notes.append(f"Tokens/s: {last}.\n")
    report.notes.append(
        f"Data: {len(examples)} examples, {total:,} tokens, {BUDGET} a pack; of Trainer + PEFT and "
        "TRL the mean loss is known only.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
