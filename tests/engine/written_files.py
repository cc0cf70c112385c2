"""Data files in every shape and format, for the tests that read them."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from backend.engine.data import dataset
from backend.engine.data.dataset import DataSet

Row = dict[str, Any]
TURNS = [
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": "On the mat."},
]
SHAREGPT = [
    {"from": "human", "value": "Where is the cat?"},
    {"from": "gpt", "value": "On the mat."},
]
SHAPES: dict[str, Row] = {
    "messages": {"messages": TURNS},
    "conversations": {"conversations": SHAREGPT},
    "prompt + completion": {"prompt": "Where is the cat?", "completion": "On the mat."},
    "instruction + output": {"instruction": "Where is the cat?", "output": "On the mat."},
    "question + answer": {"question": "Where is the cat?", "answer": "On the mat."},
    "text": {"text": "The cat is on the mat."},
}


def read(path: Path, *, eval_share: float = 0.0, seed: int = 0, **options: Any) -> DataSet:
    """Read every row at once, which else happens as rows are asked for."""
    found = dataset.read(str(path), eval_share=eval_share, seed=seed, **options)
    assert found.rows >= 0
    return found


def write(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        named = {name: None for row in rows for name in row}
        table = pyarrow.Table.from_pylist([named | row for row in rows])
        pyarrow.parquet.write_table(table, path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            names = dict.fromkeys(name for row in rows for name in row)
            writer = csv.DictWriter(file, names, delimiter=delimiter)
            writer.writeheader()
            for row in rows:
                cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                writer.writerow(cells)
    return path
