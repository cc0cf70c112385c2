"""Sources of training data: a bundled set, a file, a folder of files, or the Hub.

A source is opened as tables of numbered rows, one per file; rows are read only when needed. Knows
nothing of what a row means.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datasets import Dataset

from backend import hub_names
from backend.engine.data_files import folders, json_rows
from backend.engine.data_files.file_readers import (
    Numbered,
    counts,
    holds_out,
    is_plain_text,
    notes,
    require_data,
    rows_of,
)
from backend.engine.data_files.hub import hub_data
from backend.errors import DataError, NotFound
from backend.files import read_limits
from backend.files.foreign_files import open_regular, require_regular
from backend.files.unpacking import ZIP, DataFile
from backend.permissions import looks_like_path
from backend.settings import STARTER

READING = "3"
"""Changed whenever a file that could be read before is read in another way."""
TEXT_SHRINKS = 8
"""Compressed text takes about so many times its size when it is unpacked."""


class Table(Protocol):
    """Rows with their numbers. `file` names the table where its source has several tables."""

    @property
    def name(self) -> str: ...

    @property
    def file(self) -> str: ...

    @property
    def bytes(self) -> int: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how the table is read, where that is not plain: for the data report."""

    @property
    def is_plain_text(self) -> bool:
        """Whether its rows are the paragraphs of a text."""

    def rows(self) -> Iterator[Numbered]:
        """Yield the rows from the first one; raises DataError."""

    def count(self) -> int:
        """Count the rows without checking their content."""

    def counts(self) -> Iterator[int]:
        """Yield numbers that add up to the count."""

    def digest(self) -> str:
        """Return a hash of the content."""

    def named(self) -> "Table":
        """Return the table with its name added to each row's number."""


@dataclass(frozen=True)
class FileTable:
    """A data file, or the rows that it holds out itself."""

    content: DataFile
    file: str = ""
    is_held_out_part: bool = False

    @property
    def name(self) -> str:
        return self.content.name

    @property
    def bytes(self) -> int:
        size = self.content.path.stat().st_size
        return size * TEXT_SHRINKS if self.content.is_packed else size

    @property
    def notes(self) -> tuple[str, ...]:
        return notes(self.content)

    @property
    def is_plain_text(self) -> bool:
        return is_plain_text(self.content)

    def rows(self) -> Iterator[Numbered]:
        if self.is_held_out_part:
            return json_rows.held_out(self.content)
        return rows_of(self.content)

    def count(self) -> int:
        return sum(self.counts())

    def counts(self) -> Iterator[int]:
        if self.is_held_out_part:
            return (1 for _ in self.rows())
        return counts(self.content)

    def digest(self) -> str:
        with open_regular(self.content.path, self.name, DataError) as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        part = "held out" if self.is_held_out_part else ""
        return ":".join([own, self.content.suffix, self.content.member, part, READING])

    def named(self) -> Table:
        return replace(self, file=self.file or self.name)


@dataclass(frozen=True)
class HubTable:
    """One split of a Hub data set, prepared on disk."""

    name: str
    split: Dataset
    content: str
    file: str = ""

    @property
    def bytes(self) -> int:
        return int(self.split.data.nbytes)

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def is_plain_text(self) -> bool:
        return False

    def rows(self) -> Iterator[Numbered]:
        return enumerate(hub_data.rows(self.split), 1)

    def count(self) -> int:
        return len(self.split)

    def counts(self) -> Iterator[int]:
        yield len(self.split)

    def digest(self) -> str:
        return self.content

    def named(self) -> Table:
        return replace(self, file=self.name)


class Source(NamedTuple):
    """A source's tables for training, and the tables that its author held out.

    `notes` are sentences on what was chosen from it or left out, for the data report.
    """

    name: str
    tables: list[Table]
    held_out: list[Table]
    notes: tuple[str, ...] = ()

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes on the source and on its tables, each once; raises DataError."""
        of_tables = chain.from_iterable(each.notes for each in [*self.tables, *self.held_out])
        return tuple(dict.fromkeys([*self.notes, *of_tables]))


class Counted(NamedTuple):
    """A number of rows; where not all were counted, there are more."""

    rows: int
    is_all: bool


def count_some(tables: list[Table], seconds: float | None = None) -> Counted:
    """Count the rows of tables for a limited time; raises DataError."""
    seconds = read_limits.COUNTING_SECONDS if seconds is None else seconds
    until = time.monotonic() + seconds
    rows = 0
    for number, more in enumerate(chain.from_iterable(each.counts() for each in tables)):
        if rows and number % 1000 == 0 and time.monotonic() > until:
            return Counted(rows, False)
        rows += more
    return Counted(rows, True)


def open_source(source: str) -> Source:
    """Find a source; raises NotFound, or DataError where it is not data."""
    if source.startswith("starter:"):
        return _bundled(source.removeprefix("starter:"))
    if not looks_like_path(source):
        return _on_hub(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_files(path.name, folders.files_of(path))
    _require_file(path, source)
    if path.suffix.lower() == ZIP:
        return _of_files(path.name, folders.files_of_zip(path))
    return _of_file(path)


def first_rows(tables: list[Table]) -> Iterator[Any]:
    """Yield the rows of all tables, one after the other, without their numbers."""
    for table in tables:
        for _, row in table.rows():
            yield row


@contextmanager
def said_of(table: Table, among: int) -> Iterator[None]:
    """Name the file of several that an error is about, and how to go on with the others."""
    try:
        yield
    except DataError as error:
        if among < 2 or type(error) is not DataError:  # others offer a way on of their own
            raise
        what = error.what if table.name in error.what else f"{table.name}: {error.what}"
        cure = f"{error.cure} Or take {table.name} out of the folder."
        raise DataError(what, cure=cure) from None


def _on_hub(source: str) -> Source:
    choice, (main, *held_out) = hub_data.load(hub_names.read(source))
    apart = [HubTable(str(each.name), each.rows, each.digest, each.name.split) for each in held_out]
    return Source(
        source, [HubTable(str(main.name), main.rows, main.digest)], [*apart], choice.splits.notes
    )


def _bundled(name: str) -> Source:
    folder = STARTER / "data" / name
    if "/" in name or not (folder / "train.jsonl").is_file():
        known = ", ".join(sorted(p.parent.name for p in STARTER.glob("data/*/train.jsonl")))
        raise NotFound(f"There is no bundled data set {name!r}.", cure=f"Bundled: {known}.")
    train, held_out = (
        DataFile(folder / f"{part}.jsonl", f"{part}.jsonl") for part in ("train", "held_out")
    )
    return Source(name, [FileTable(train)], [FileTable(held_out, held_out.name)])


def _of_file(path: Path) -> Source:
    """Open a file, which may hold a list for training and others that are held out."""
    file = DataFile(path, path.name)
    require_data(file)
    held_out = [FileTable(file, "held out", is_held_out_part=True)] if holds_out(file) else []
    return Source(path.name, [FileTable(file)], list[Table](held_out))


def _of_files(name: str, found: folders.Files) -> Source:
    training, held_out = (
        [FileTable(file, label) for label, file in part.items()]
        for part in (found.training, found.held_out)
    )
    return Source(name, list[Table](training), list[Table](held_out), found.notes)


def _require_file(path: Path, source: str) -> None:
    if path.exists():
        require_regular(path, path.name, DataError)
    if not path.is_file():
        if path.parent.parent.name == "uploads":  # the user does not know the upload folder
            raise NotFound(f"The upload {path.name!r} is gone.", cure="Upload the file again.")
        raise NotFound(f"There is no file {source!r}.", cure="Check the path, or upload the file.")
