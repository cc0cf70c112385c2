"""Tokenising, masking and packing a large file, against a plain `datasets.map` of it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from backend.service import allocator
from backend.settings import PROJECT
from benchmarks.interleave import interleaved
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed

BAR_FIRST, BAR_SECOND_S, BAR_PADDING = 1.0, 1.0, 0.03
PROCESSES = (None, 2)
"""How a script may share the work: by the tokenizer's own threads, or by two processes."""


def main(arguments: list[str] | None = None) -> int:
    """Tokenise the same conversations on both sides in turns, each time from nothing."""
    parser = flags(__doc__, repeats="pairs")
    parser.set_defaults(pairs=3)
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
        "runs": f"{chosen.pairs} pairs, each side in a process of its own without anything kept "
        "from before; ours with the allocator that the app starts it with",
        "threads": f"{torch.get_num_threads()} of PyTorch; tokenizers as they come",
    }
    return report.finish(save=chosen.save)


def measure(file: Path, pairs: int, report: Report, *, judged: bool) -> None:
    """Compare first runs with the faster script, and tell our second run and its padding."""
    ratios = {}
    for processes in PROCESSES:
        found = interleaved(
            lambda p=processes: one(file, peer=True, processes=p),
            lambda: one(file, peer=False),
            pairs=pairs,
        )
        ratios[processes] = found.ratios(lambda each: each["seconds"])
        label = f"{processes} processes" if processes else "one process"
        report.add(f"datasets.map in {label} / ours", f"{ratios[processes]:.2f}")
    slowest = min(ratio.median for ratio in ratios.values())
    report.add(
        "the faster datasets.map / ours", f"{slowest:.2f}", f">= {BAR_FIRST}" if judged else "",
        slowest >= BAR_FIRST if judged else None,
    )  # fmt: skip
    second = max(each["again"] for each in found.peer)
    report.add(
        "our second run", f"{second:.2f} s", f"< {BAR_SECOND_S:g} s" if judged else "",
        second < BAR_SECOND_S if judged else None,
    )  # fmt: skip
    padding = found.peer[0]["padding"]
    report.add(
        "padding in training batches", f"{padding:.1%}", f"<= {BAR_PADDING:.0%}",
        padding <= BAR_PADDING,
    )  # fmt: skip
    report.notes.append(
        "Ours also finds which tokens are learned, checks that for each example, hashes each "
        "example to tell equal ones, and packs; `datasets.map` renders and tokenises alone.\n"
    )


def one(file: Path, *, peer: bool, processes: int | None = None) -> dict[str, float]:
    """Tokenise a file in a process of its own, ours with the allocator that the app gives it."""
    case = {"file": str(file), "peer": peer, "processes": processes}
    added = {} if peer else allocator.environment()
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.one_tokenising", json.dumps(case)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
        env={**os.environ, **added},
    )
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    raise SystemExit(main())
