"""Tokenising, masking and packing a large file, against a plain `datasets.map` of it."""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from backend.service import allocator
from backend.service.worker_process import process_environment
from backend.settings import PROJECT
from benchmarks.interleave import Spread, in_turns
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed

BAR_FIRST, BAR_SECOND_S, BAR_PADDING = 1.0, 1.0, 0.03
PROCESSES = (None, 2)
"""How a script may share the work: by the tokenizer's own threads, or by two processes."""


def main(arguments: list[str] | None = None) -> int:
    """Tokenise the same conversations on both sides in turns, each time from nothing."""
    parser = flags(__doc__, repeats="pairs")
    parser.set_defaults(pairs=5)
    parser.add_argument("--rows", type=int, default=100_000, help="how many (default 100,000)")
    chosen, words = read_flags(parser, arguments, pairs=1, rows=200)
    report = Report("tokenising", f"Tokenising {chosen.rows:,} conversations", words)
    with tempfile.TemporaryDirectory() as name:
        file = write_skewed(Path(name) / "skewed.jsonl", chosen.rows)
        measure(file, chosen.pairs, report, judged=not chosen.quick)
        size = file.stat().st_size
    report.facts = {
        "data": f"{chosen.rows:,} conversations, {size / 1e6:.1f} MB of JSONL, median 50 tokens, "
        "99th percentile 400; the starter's tokenizer and template",
        "runs": f"{chosen.pairs} rounds of all sides in turns, each in a process of its own "
        "without anything kept from before; ours in the environment that the app gives its worker",
        "threads": f"{torch.get_num_threads()} of PyTorch; those of tokenizers as they come for "
        "datasets.map, and two of the app's own, each with one thread of tokenizers, for ours",
    }
    return report.finish(save=chosen.save)


def measure(file: Path, pairs: int, report: Report, *, judged: bool) -> None:
    """Compare first runs with the faster script, and tell our second run and its padding."""
    peers = {
        f"datasets.map in {each} processes" if each else "datasets.map in one process": partial(
            one, file, peer=True, processes=each
        )
        for each in PROCESSES
    }
    found = in_turns({"ours": partial(one, file, peer=False), **peers}, rounds=pairs)
    ratios = {}
    for label in peers:
        both = zip(found[label], found["ours"], strict=True)
        ratios[label] = Spread([peer["seconds"] / ours["seconds"] for peer, ours in both])
        report.add(f"{label} / ours", f"{ratios[label]:.2f}")
    slowest = min(ratio.median for ratio in ratios.values())
    report.add(
        "the faster datasets.map / ours", f"{slowest:.2f}", f">= {BAR_FIRST}" if judged else "",
        slowest >= BAR_FIRST if judged else None,
    )  # fmt: skip
    second = max(each["again"] for each in found["ours"])
    report.add(
        "our second run", f"{second:.2f} s", f"< {BAR_SECOND_S:g} s" if judged else "",
        second < BAR_SECOND_S if judged else None,
    )  # fmt: skip
    padding = found["ours"][0]["padding"]
    report.add(
        "padding in training batches", f"{padding:.1%}", f"<= {BAR_PADDING:.0%}",
        padding <= BAR_PADDING,
    )  # fmt: skip
    report.notes.append(
        "Ours also finds which tokens are learned, checks that for each example, hashes each "
        "example to tell equal ones, and packs; `datasets.map` renders and tokenises alone.\n"
    )


def one(file: Path, *, peer: bool, processes: int | None = None) -> dict[str, float]:
    """Tokenise a file in a process of its own, ours in the environment that the app gives it."""
    case = {"file": str(file), "peer": peer, "processes": processes}
    app = process_environment(allocator.environment())
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.one_tokenising", json.dumps(case)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
        env=dict(os.environ) if peer else app,
    )
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    raise SystemExit(main())
