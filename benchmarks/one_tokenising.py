"""One tokenising of a file in this process, by us or as a plain script does; prints it as JSON."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars, load_dataset
from transformers import AutoTokenizer

from backend.engine.data import dataset, tokenization
from backend.engine.data.token_arrays import lengths_of
from backend.engine.data.token_cache import TokenStore
from backend.engine.steps import packing
from benchmarks import models
from benchmarks.our_training import train_request

BUDGET = 2048


def main() -> None:
    """Do what the first argument says, a JSON object."""
    case = json.loads(sys.argv[1])
    file, processes = Path(case["file"]), case["processes"]
    tokenizer = AutoTokenizer.from_pretrained(models.STARTER_MODEL)
    with tempfile.TemporaryDirectory() as folder:
        found = (
            by_map(file, tokenizer, processes, Path(folder))
            if case["peer"]
            else ours(file, tokenizer, Path(folder))
        )
    print(json.dumps(found))


def by_map(file: Path, tokenizer: Any, processes: int | None, folder: Path) -> dict[str, float]:
    """Tokenise a file as a plain script does; reading is part of it."""

    def rendered(batch: dict[str, Any]) -> dict[str, Any]:
        texts = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    disable_progress_bars()
    started = time.perf_counter()
    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder))
    rows.map(rendered, batched=True, num_proc=processes, remove_columns=rows.column_names)
    return {"seconds": time.perf_counter() - started}


def ours(file: Path, tokenizer: Any, folder: Path) -> dict[str, float]:
    """Tokenise and pack with nothing kept, and once more with what was kept of that."""
    train = train_request(file, budget=BUDGET, epochs=1.0)

    def packed() -> tuple[float, packing.Packs]:
        started = time.perf_counter()
        corpus = tokenization.tokenise(
            dataset.of_run(train),
            tokenizer,
            max_length=train.longest,
            store=TokenStore(folder / "tokens", worth_bytes=0),
        )
        packs = packing.training_packs(corpus.train, train)
        return time.perf_counter() - started, packs

    first, _ = packed()
    second, packs = packed()
    fed = sum(packs[index]["input_ids"].numel() for index in range(len(packs)))
    padding = 1 - sum(lengths_of(packs.documents)) / fed
    return {"seconds": first, "again": second, "padding": padding}


if __name__ == "__main__":
    main()
