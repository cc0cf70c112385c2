"""One data file as numbered rows, read as they are asked for; a file is never held as a whole.

The exception is `.json`, one list, which has to be. Row numbers count from 1 and are line numbers
where the file has lines, so that an editor finds them. Knows nothing of what rows mean.
"""

import codecs
import csv
import json
import logging
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as parquet

from backend.engine.file_kinds import real_kind
from backend.errors import DataError

log = logging.getLogger(__name__)
Numbered = tuple[int, Any]
KINDS = "a JSONL, JSON, CSV, TSV, Parquet or text file"
LONGEST_CELL = 50_000_000
PARQUET_BATCH = 1000
SCANNED = 1 << 20
BETWEEN = {",": "commas", "\t": "tabs", ";": "semicolons"}
TURNS = ("messages", "conversations")
"""Columns whose cells are lists, so that an object with one is a row and not a list of rows."""
PARAGRAPHS = (".txt", ".md")
"""Endings of files whose paragraphs are the examples."""


class Broken(NamedTuple):
    """Stands for a row that its format does not allow, while the rows after it can be read."""

    what: str
    value: Any


def read_rows(path: Path, name: str) -> Iterator[Numbered]:
    """Yield a file's rows with their numbers; DataError says where it cannot be read, and why."""
    yield from READERS[path.suffix.lower()](path, name)


def count_rows(path: Path, name: str) -> int:
    """Count a file's rows, as fast as its format allows; what is in them is not looked at."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return sum(1 for line in _lines(path, name) if line.strip())
    if suffix == ".parquet":
        return int(_open_parquet(path, name).metadata.num_rows)
    return sum(1 for _ in read_rows(path, name))


def _lines(path: Path, name: str) -> Iterator[str]:
    kind = real_kind(path)
    if kind:
        cure = "Save it as UTF-8." if "UTF-16" in kind else f"Use {KINDS}."
        raise DataError(f"{name} is {kind}, whatever its name says.", cure=cure)
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError:
        place = _first_bad_byte(path)
        raise DataError(
            f"{name} is not UTF-8 text (byte {place}).", cure="Save it as UTF-8."
        ) from None


def _first_bad_byte(path: Path) -> int:
    """Find the place of what is not UTF-8: while streaming, the error knows only its own piece."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with path.open("rb") as file:
        while True:
            piece = file.read(SCANNED)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                return offset - pending + error.start
            if not piece:
                return offset
            offset += len(piece)


def _read_jsonl(path: Path, name: str) -> Iterator[Numbered]:
    for number, line in enumerate(_lines(path, name), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, Broken(f"it is not valid JSON ({_reason(error)})", line.rstrip())


def _read_json(path: Path, name: str) -> Iterator[Numbered]:
    content = "".join(_lines(path, name))
    if not content.strip():
        return
    try:
        content = json.loads(content)
    except json.JSONDecodeError as error:
        several = error.msg == "Extra data"
        raise DataError(
            f"{name}, line {error.lineno} is not valid JSON: {_reason(error)}.",
            cure="The file is one list of objects."
            + (" One object a line is JSONL: name it .jsonl then." if several else ""),
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not valid JSON: {error}.") from None
    yield from enumerate(_examples(content, name), 1)


def _examples(content: Any, name: str) -> list[Any]:
    """Return the list that a file is, or the only list of objects in it; one example is a list."""
    if isinstance(content, dict):
        if any(isinstance(content.get(column), list) for column in TURNS):
            return [content]
        lists = [each for each in content.values() if isinstance(each, list)]
        if len(lists) == 1 and lists[0] and all(isinstance(row, dict) for row in lists[0]):
            content = lists[0]
    if not isinstance(content, list):
        raise DataError(
            f"{name} is not a list of examples.",
            cure='It looks like [{"prompt": "...", "completion": "..."}, ...].',
        )
    return content


def _reason(error: Exception) -> str:
    """Say what is wrong with JSON; some of Python's own sentences end in "at"."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg} column {error.colno}" if error.msg.endswith(" at") else error.msg


def _read_csv(path: Path, name: str) -> Iterator[Numbered]:
    return _read_separated(path, name, ",", "CSV")


def _read_tsv(path: Path, name: str) -> Iterator[Numbered]:
    return _read_separated(path, name, "\t", "TSV")


def _read_separated(path: Path, name: str, delimiter: str, kind: str) -> Iterator[Numbered]:
    """Read rows by the names in the first line.

    Wrong quotes end the file: they may have swallowed any number of lines before they are noticed.
    """
    lines = _lines(path, name)
    first = next(lines, "")
    delimiter = _delimiter(first, delimiter)
    between = BETWEEN[delimiter]
    more = f"it has more columns than the first line (text with {between} needs quotes around it)"
    csv.field_size_limit(LONGEST_CELL)
    # Lines of the file, not `splitlines`, which also breaks at characters that end no line in CSV.
    reader = csv.DictReader(chain([first], lines), strict=True, delimiter=delimiter)
    try:
        twice = [column for column in reader.fieldnames or [] if _count(reader, column) > 1]
        if twice:
            raise DataError(
                f"{name} has two columns called {twice[0]!r}.", cure="Give each its own name."
            )
        for row in reader:
            yield reader.line_num, Broken(more, row[None]) if None in row else row
    except csv.Error as error:
        line = reader.reader.line_num  # DictReader's own number stays at the last good row
        raise DataError(f"{name}, line {line} is not valid {kind}: {error}.") from None


def _delimiter(names: str, usual: str) -> str:
    """Tell what lies between the names in the first line: Excel often writes semicolons."""
    if usual in names:
        return usual
    return next((other for other in BETWEEN if other in names), usual)


def _count(reader: "csv.DictReader[str]", column: str) -> int:
    return list(reader.fieldnames or []).count(column)


def _read_parquet(path: Path, name: str) -> Iterator[Numbered]:
    file = _open_parquet(path, name)
    number = 0
    batches = file.iter_batches(batch_size=PARQUET_BATCH)
    while True:
        try:
            rows = next(batches).to_pylist()
        except StopIteration:
            return
        except Exception as error:
            raise _damaged(path, name, error) from None
        for row in rows:
            number += 1
            yield number, row


def _open_parquet(path: Path, name: str) -> parquet.ParquetFile:
    kind = real_kind(path)
    if kind != "a Parquet file":
        what = f"{name} is {kind or 'text'}, whatever its name says."
        raise DataError(what, cure=f"Use {KINDS}, each with its own ending.")
    try:
        return parquet.ParquetFile(path)
    except Exception as error:
        raise _damaged(path, name, error) from None


def _damaged(path: Path, name: str, error: Exception) -> DataError:
    # The reader's own words name the folder in which an upload is kept.
    log.info("%s cannot be read.", path, exc_info=error)
    return DataError(
        f"{name} is a damaged Parquet file: its content cannot be read to the end.",
        cure="Write or download it again, and upload it once more.",
    )


def _read_paragraphs(path: Path, name: str) -> Iterator[Numbered]:
    """Paragraphs, blank lines apart, are the examples; each has the number of its first line."""
    begun, kept = 0, ""
    for number, line in enumerate(_lines(path, name), 1):
        if line.strip():
            begun, kept = begun or number, kept + line
        elif kept:
            yield begun, {"text": kept.rstrip()}
            begun, kept = 0, ""
    if kept:
        yield begun, {"text": kept.rstrip()}


READERS: dict[str, Callable[[Path, str], Iterator[Numbered]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    **dict.fromkeys(PARAGRAPHS, _read_paragraphs),
}
