"""Sources of training data: a bundled set, a file, a folder of files, or the Hub.

A source is opened as tables of numbered rows, one per file; rows are read only when needed. Knows
nothing of what a row means.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datasets import Dataset

from backend import hub_names
from backend.engine.data_files import hub_data
from backend.engine.data_files.file_readers import READERS, Numbered, count_rows, read_rows
from backend.errors import DataError, NotFound
from backend.files.foreign_files import open_regular, require_regular
from backend.permissions import looks_like_path
from backend.settings import STARTER

MOST_FILES = 1000
ABOUT = ("readme", "license", "licence", "changelog")


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

    def rows(self) -> Iterator[Numbered]:
        """Yield the rows from the first one; raises DataError."""

    def count(self) -> int:
        """Count the rows without checking their content."""

    def digest(self) -> str:
        """Return a hash of the content."""

    def named(self) -> "Table":
        """Return the table with its name added to each row's number."""


@dataclass(frozen=True)
class FileTable:
    """A data file."""

    path: Path
    file: str = ""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def rows(self) -> Iterator[Numbered]:
        return read_rows(self.path, self.name)

    def count(self) -> int:
        return count_rows(self.path, self.name)

    def digest(self) -> str:
        with open_regular(self.path, self.name, DataError) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() + self.path.suffix.lower()

    def named(self) -> Table:
        return replace(self, file=self.name)


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

    def rows(self) -> Iterator[Numbered]:
        return enumerate(hub_data.rows(self.split), 1)

    def count(self) -> int:
        return len(self.split)

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


def open_source(source: str) -> Source:
    """Find a source; raises NotFound, or DataError where it is not data."""
    if source.startswith("starter:"):
        return _bundled(source.removeprefix("starter:"))
    if not looks_like_path(source):
        return _on_hub(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return Source(path.name, _folder(path), [])
    return Source(path.name, [_file(path, source)], [])


def first_rows(tables: list[Table]) -> Iterator[Any]:
    """Yield the rows of all tables, one after the other, without their numbers."""
    for table in tables:
        for _, row in table.rows():
            yield row


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
    held_out = FileTable(folder / "held_out.jsonl", "held_out.jsonl")
    return Source(name, [FileTable(folder / "train.jsonl")], [held_out])


def _file(path: Path, source: str) -> Table:
    if path.exists():
        require_regular(path, path.name, DataError)
    if not path.is_file():
        if path.parent.parent.name == "uploads":  # the user does not know the upload folder
            raise NotFound(f"The upload {path.name!r} is gone.", cure="Upload the file again.")
        raise NotFound(f"There is no file {source!r}.", cure="Check the path, or upload the file.")
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path.name} is not a data file.", cure=f"Use {', '.join(READERS)}.")
    return FileTable(path)


def _folder(path: Path) -> list[Table]:
    """Return the data files in a folder, sorted by name.

    Hidden files, sub-folders and files about the data (a README, a licence) are left out.
    """
    found = sorted(
        each
        for each in path.iterdir()
        if each.suffix.lower() in READERS and not _is_about(each.name) and not each.is_dir()
    )
    if not found:
        raise DataError(
            f"The folder {path.name} has no data file.", cure=f"Use {', '.join(READERS)}."
        )
    for each in found:
        if not each.exists():
            raise DataError(
                f"{each.name} in the folder {path.name} is a link to a file that does not exist.",
                cure="Remove the link, or put the file itself into the folder.",
            )
        require_regular(each, each.name, DataError)
        if not each.resolve().is_relative_to(path.resolve()):
            raise DataError(
                f"{each.name} in the folder {path.name} is a link to a file outside the folder.",
                cure="Put the file itself into the folder.",
            )
    if len(found) > MOST_FILES:
        raise DataError(
            f"The folder {path.name} has {len(found):,} data files, and at most {MOST_FILES:,} "
            "are read.",
            cure="Put the rows into fewer files.",
        )
    return [FileTable(each, each.name) for each in found]


def _is_about(name: str) -> bool:
    return name.startswith(".") or Path(name).stem.lower() in ABOUT
