"""Training data: from a file's rows to token ids with a mask of what is learned.

Knows nothing of models beyond the tokenizer. Every row that cannot be used is named by its number.
"""

import csv
import io
import json
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError

from backend.access import looks_like_path
from backend.engine.file_kinds import real_kind
from backend.errors import DataError, NotFound
from backend.results import RowProblem
from backend.settings import STARTER

log = logging.getLogger(__name__)
Row = dict[str, Any]
Turns = list[dict[str, str]]
ROLES = ("system", "user", "assistant")
KINDS = "a JSONL, JSON, CSV or Parquet file"
MAX_PROBLEMS = 100
LONGEST_CELL = 50_000_000
SHAPES = {
    "messages": ("messages",),
    "prompt + completion": ("prompt", "completion"),
    "instruction + output": ("instruction", "output"),
    "text": ("text",),
}


@dataclass
class Document:
    """One example before tokenising: turns of a conversation, or plain text.

    `row` counts from 1. In plain text everything is learned.
    """

    row: int
    turns: Turns = field(default_factory=list)
    text: str = ""

    @property
    def key(self) -> str:
        """What makes two examples the same."""
        return json.dumps(self.turns) if self.turns else self.text


@dataclass
class DataSet:
    """All usable examples of a source; `problems` names the rows that are not."""

    shape: str
    shape_reason: str
    rows: int
    train: list[Document]
    held_out: list[Document]
    problems: list[RowProblem]

    def require_good(self) -> None:
        """Raise DataError where a row cannot be used."""
        if self.problems:
            shown = "; ".join(f"row {p.row}: {p.what}" for p in self.problems[:3])
            more = f" and {len(self.problems) - 3} more" if len(self.problems) > 3 else ""
            raise DataError(
                f"{len(self.problems)} of {self.rows} rows cannot be used: {shown}{more}.",
                cure="Mend or remove them and upload the file again.",
            )


def read(source: str, *, eval_share: float, seed: int) -> DataSet:
    """Read a bundled set, a file or a Hub data set, and set the held-out part aside.

    Raises DataError or NotFound with the line or column that is wrong. Examples that are equal
    always fall on the same side, so that no held-out one was learned.
    """
    if source.startswith("starter:"):
        return _read_bundled(source.removeprefix("starter:"))
    data = _to_dataset(_read_rows(source), source)
    keys = sorted({document.key for document in data.train})
    random.Random(seed).shuffle(keys)
    held_out = set(keys[: _held_out_count(len(keys), eval_share)])
    data.held_out = [d for d in data.train if d.key in held_out]
    data.train = [d for d in data.train if d.key not in held_out]
    return data


def _held_out_count(examples: int, share: float) -> int:
    """Return how many distinct examples to keep aside; too few to spare any means none."""
    if share == 0 or examples < 5:
        return 0
    return max(1, round(examples * share))


def _read_bundled(name: str) -> DataSet:
    folder = STARTER / "data" / name
    if "/" in name or not (folder / "train.jsonl").is_file():
        known = ", ".join(sorted(p.parent.name for p in STARTER.glob("data/*/train.jsonl")))
        raise NotFound(f"There is no bundled data set {name!r}.", cure=f"Bundled: {known}.")
    data = _to_dataset(_read_rows(str(folder / "train.jsonl")), name)
    held_out = _to_dataset(_read_rows(str(folder / "held_out.jsonl")), name)
    data.rows += held_out.rows
    data.held_out = held_out.train
    return data


def _read_rows(source: str) -> list[tuple[int, Any]]:
    """Return the rows of a source with their numbers (line numbers where the file has lines)."""
    path = Path(source).expanduser()
    if not looks_like_path(source):
        return _read_hub(source)
    if not path.is_file():
        if path.parent.parent.name == "uploads":  # whose folder its owner has never seen
            raise NotFound(f"The upload {path.name!r} is gone.", cure="Upload the file again.")
        raise NotFound(f"There is no file {source!r}.", cure="Check the path, or upload the file.")
    readers = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path.name} is not a data file.", cure=f"Use {', '.join(readers)}.")
    rows = list(reader(path))
    if not rows:
        raise DataError(f"{path.name} is empty.", cure="It needs at least one example.")
    return rows


def _read_text(path: Path) -> str:
    kind = real_kind(path)
    if kind:
        cure = "Save it as UTF-8." if "UTF-16" in kind else f"Use {KINDS}."
        raise DataError(f"{path.name} is {kind}, whatever its name says.", cure=cure)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 text (byte {error.start}).", cure="Save it as UTF-8."
        ) from None


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{path.name}, line {number} is not valid JSON: {reason}.",
                cure="Each line is one JSON object.",
            ) from None


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        several = error.msg == "Extra data"
        raise DataError(
            f"{path.name}, line {error.lineno} is not valid JSON: {error.msg}.",
            cure="The file is one list of objects."
            + (" One object a line is JSONL: name it .jsonl then." if several else ""),
        ) from None
    if not isinstance(content, list):
        raise DataError(f"{path.name} is not a list of examples.", cure="Put them into [ ].")
    yield from enumerate(content, 1)


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(LONGEST_CELL)
    # Not splitlines, which also breaks at characters that are no line ends in a CSV file.
    reader = csv.DictReader(io.StringIO(_read_text(path)), strict=True)
    try:
        for row in reader:
            if None in row:
                raise DataError(
                    f"{path.name}, line {reader.line_num} has more columns than the first line.",
                    cure="Put quotes around text with commas.",
                )
            yield reader.line_num, row
    except csv.Error as error:
        line = reader.reader.line_num  # DictReader's own number stays at the last good row
        raise DataError(f"{path.name}, line {line} is not valid CSV: {error}.") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    kind = real_kind(path)
    if kind != "a Parquet file":
        what = f"{path.name} is {kind or 'text'}, whatever its name says."
        raise DataError(what, cure=f"Use {KINDS}, each with its own ending.")
    try:
        table = parquet.read_table(path)
    except Exception as error:
        # The reader's own words name the folder in which an upload is kept.
        log.info("%s cannot be read.", path, exc_info=error)
        raise DataError(
            f"{path.name} is a damaged Parquet file: its content cannot be read to the end.",
            cure="Write or download it again, and upload it once more.",
        ) from None
    yield from enumerate(table.to_pylist(), 1)


def _read_hub(source: str) -> list[tuple[int, Any]]:
    try:
        return list(enumerate(load_dataset(source, split="train"), 1))
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise NotFound(
            f"The data set {source!r} is not on this machine, and the Hub does not give it.",
            cure="Check the spelling and the internet connection, or upload a file.",
            details=str(error),
        ) from None
    except (ValueError, RuntimeError) as error:
        raise DataError(f"The data set {source!r} cannot be read: {error}.") from None


def _to_dataset(rows: list[tuple[int, Any]], source: str) -> DataSet:
    shape = _shape_of(rows, source)
    documents: list[Document] = []
    problems: list[RowProblem] = []
    for number, row in rows:
        try:
            documents.append(_to_document(number, row, shape))
        except ValueError as error:
            if len(problems) < MAX_PROBLEMS:
                problems.append(RowProblem(row=number, what=str(error)))
    reason = f"it has {'the column' if len(SHAPES[shape]) == 1 else 'the columns'} "
    reason += " and ".join(SHAPES[shape])
    return DataSet(shape, reason, len(rows), documents, [], problems)


def _shape_of(rows: list[tuple[int, Any]], source: str) -> str:
    """Recognise the data by its columns."""
    first = next((row for _, row in rows if isinstance(row, dict)), None)
    if first is None:
        raise DataError(
            "The rows are not objects with named columns.",
            cure='A row looks like {"prompt": "...", "completion": "..."}.',
        )
    for shape, columns in SHAPES.items():
        if all(column in first for column in columns):
            return shape
    raise DataError(
        f"The columns {', '.join(map(str, first))} are not ones that can be learned from.",
        cure="Name them messages, or prompt and completion, or instruction (with input) "
        "and output, or text.",
    )


def _to_document(number: int, row: Any, shape: str) -> Document:
    """Turn one row into a document; ValueError says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError(f"it is {type(row).__name__}, not an object")
    if shape == "messages":
        return Document(number, turns=_check_turns(row.get("messages")))
    if shape == "text":
        return Document(number, text=_text(row, "text"))
    if shape == "prompt + completion":
        prompt, answer = _text(row, "prompt"), _text(row, "completion")
    else:
        prompt, answer = _text(row, "instruction"), _text(row, "output")
        extra = _text(row, "input") if row.get("input") else ""
        prompt = f"{prompt}\n\n{extra}" if extra else prompt
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Document(number, turns=turns)


def _check_turns(value: Any) -> Turns:
    if isinstance(value, str):  # a CSV cell can only hold the list as JSON text
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("messages is not a JSON list") from None
    if not isinstance(value, list) or not value:
        raise ValueError("messages is not a list of turns")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise ValueError("a turn has no role and content")
        if turn.get("role") not in ROLES:
            raise ValueError(f"the role {turn.get('role')!r} is not system, user or assistant")
        turns.append({"role": str(turn["role"]), "content": _whole(turn["content"], "a turn")})
    return turns


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"{column} is {'missing' if value is None else f'{value!r}, not text'}")
    return _whole(value, column)


def _whole(text: str, place: str) -> str:
    """Return the text; raises ValueError for what JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place} holds half a character (a lone surrogate)") from None
    return text
