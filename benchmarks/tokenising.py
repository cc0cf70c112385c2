"""Tokenising, masking and packing a large file, against a plain `datasets.map` of it."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars, load_dataset
from transformers import AutoTokenizer

from backend import requests as rq
from backend.engine import data, packing, tokens
from backend.engine.encoded import lengths_of
from backend.engine.token_store import TokenStore
from benchmarks import models
from benchmarks.interleave import interleaved
from benchmarks.our_training import train_request
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed

BAR_FIRST, BAR_SECOND_S, BAR_PADDING = 1.0, 1.0, 0.03
BUDGET = 2048
PROCESSES = (None, 2)
"""How a script may share the work: by the tokenizer's own threads, or by two processes."""


def main(arguments: list[str] | None = None) -> int:
    """Tokenise the same conversations on both sides in turns, each time from nothing."""
    parser = flags(__doc__, repeats="pairs")
    parser.set_defaults(pairs=3)
    parser.add_argument("--rows", type=int, default=100_000, help="how many (default 100,000)")
    chosen, words = read_flags(parser, arguments, pairs=1, rows=200)
    report = Report("tokenising", f"Tokenising {chosen.rows:,} conversations", words)
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(models.STARTER_MODEL)
    with tempfile.TemporaryDirectory() as name:
        file = write_skewed(Path(name) / "skewed.jsonl", chosen.rows)
        side = _Ours(Path(name), train_request(file, budget=BUDGET, epochs=1.0), tokenizer)
        measure(side, file, chosen.pairs, report, judged=not chosen.quick)
        size = file.stat().st_size
    report.facts = {
        "data": f"{chosen.rows:,} conversations, {size / 1e6:.1f} MB of JSONL, median 50 tokens, "
        "99th percentile 400; the starter's tokenizer and template",
        "runs": f"{chosen.pairs} pairs, each without anything kept from before",
        "threads": f"{torch.get_num_threads()} of PyTorch; tokenizers as they come",
    }
    return report.finish(save=chosen.save)


def measure(side: "_Ours", file: Path, pairs: int, report: Report, *, judged: bool) -> None:
    """Compare first runs with the faster script, and tell our second run and its padding."""
    ratios = {}
    for processes in PROCESSES:
        found = interleaved(
            lambda p=processes: by_map(file, side.tokenizer, p), side.afresh, pairs=pairs
        )
        ratios[processes] = found.ratios(float)
        label = f"{processes} processes" if processes else "one process"
        report.add(f"datasets.map in {label} / ours", f"{ratios[processes]:.2f}")
    slowest = min(ratio.median for ratio in ratios.values())
    report.add(
        "the faster datasets.map / ours", f"{slowest:.2f}", f">= {BAR_FIRST}" if judged else "",
        slowest >= BAR_FIRST if judged else None,
    )  # fmt: skip
    second = side.again()
    report.add(
        "our second run", f"{second:.2f} s", f"< {BAR_SECOND_S:g} s" if judged else "",
        second < BAR_SECOND_S if judged else None,
    )  # fmt: skip
    padding = side.padding()
    report.add(
        "padding in training batches", f"{padding:.1%}", f"<= {BAR_PADDING:.0%}",
        padding <= BAR_PADDING,
    )  # fmt: skip
    report.notes.append(
        "Ours also finds which tokens are learned, checks that for each example, hashes each "
        "example to tell equal ones, and packs; `datasets.map` renders and tokenises alone.\n"
    )


def by_map(file: Path, tokenizer: Any, processes: int | None) -> float:
    """Tokenise a file as a plain script does; returns the seconds, reading included."""

    def rendered(batch: dict[str, Any]) -> dict[str, Any]:
        texts = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        rows = load_dataset("json", data_files=str(file), split="train", cache_dir=cache)
        rows.map(rendered, batched=True, num_proc=processes, remove_columns=rows.column_names)
        return time.perf_counter() - started


class _Ours:
    """Our side, each first run with a store of its own."""

    def __init__(self, folder: Path, train: rq.Train, tokenizer: Any) -> None:
        self._folder = folder
        self._train = train
        self.tokenizer = tokenizer
        self._runs = 0

    def afresh(self) -> float:
        """Tokenise and pack with nothing kept; returns the seconds."""
        self._runs += 1
        return self.again()

    def again(self) -> float:
        """Tokenise and pack with what the last run kept; returns the seconds."""
        started = time.perf_counter()
        self._packs = packing.training_packs(self._corpus().train, self._train)
        return time.perf_counter() - started

    def padding(self) -> float:
        """Return the share of a run's batches that is no token of an example."""
        fed = sum(self._packs[index]["input_ids"].numel() for index in range(len(self._packs)))
        return 1 - sum(lengths_of(self._packs.documents)) / fed

    def _corpus(self) -> tokens.Corpus:
        return tokens.tokenise(
            data.of_run(self._train),
            self.tokenizer,
            max_length=self._train.longest,
            store=TokenStore(self._folder / f"tokens-{self._runs}", worth_bytes=0),
        )


if __name__ == "__main__":
    raise SystemExit(main())
