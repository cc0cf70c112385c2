"""Moving folders into a workspace, all or none, even if the machine fails during it.

A journal in the staging folder records the moves and their process. If that process ended before it
finished, the next start undoes its moves.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from pydantic import BaseModel, ValidationError

from backend.errors import VerificationFailed
from backend.files.atomic_files import sync_folder, write_text
from backend.processes import is_running
from backend.workspace.archive import Entry, digest_of

JOURNAL = "journal.json"
_STAGING = ".import-"


class Journal(BaseModel):
    """The process and its moves, as pairs of source and target."""

    pid: int
    process_started: float
    moves: list[tuple[str, str]]


class Move(NamedTuple):
    """One folder to move; `entries` are the files in it that must arrive unchanged."""

    source: Path
    target: Path
    entries: dict[str, Entry]


class Moves:
    """The moves out of one staging folder."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self._moves: list[Move] = []

    def add(
        self, source: Path, target: Path, entries: dict[str, Entry], *, rewritten: tuple[str, ...]
    ) -> None:
        """Plan a move; files that were rewritten here are not compared."""
        kept = {name: entry for name, entry in entries.items() if name not in rewritten}
        self._moves.append(Move(source, target, kept))

    def sources(self, root: Path) -> Iterator[Path]:
        """Yield the staged folders that will be moved into this folder."""
        yield from (move.source for move in self._moves if move.target.parent == root)

    def carry_out(self, settle: Callable[[], None]) -> int:
        """Move, compare every file at its new place, then call `settle`; return the count.

        Raises VerificationFailed, or what `settle` or the disk raises; then nothing was moved.
        """
        journal = _write_journal(
            self._staging, [(str(move.source), str(move.target)) for move in self._moves]
        )
        try:
            sync_folder(self._staging)
            for move in self._moves:
                move.target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(move.source, move.target)
            compared = sum(_compare(move) for move in self._moves)
            settle()
        except BaseException:
            _undo(journal)
            raise
        (self._staging / JOURNAL).unlink()
        return compared


@contextmanager
def staging(workspace: Path) -> Iterator[Path]:
    """Yield a folder to unpack into, on the workspace's own disk; it is removed afterwards."""
    folder = workspace / f"{_STAGING}{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        _write_journal(folder, [])
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_journal(folder: Path, moves: list[tuple[str, str]]) -> Journal:
    process = psutil.Process()
    journal = Journal(pid=process.pid, process_started=process.create_time(), moves=moves)
    write_text(folder / JOURNAL, journal.model_dump_json())
    return journal


def _compare(move: Move) -> int:
    for name, entry in move.entries.items():
        if digest_of(move.target / name) != entry:
            raise VerificationFailed(
                f"{name} did not arrive as it was exported, so nothing was imported.",
                cure="Check the disk, then try again.",
            )
    return len(move.entries)


def _undo(journal: Journal) -> None:
    """Remove folders that were already moved; they are still in the zip file."""
    for source, target in journal.moves:
        if not Path(source).exists():
            shutil.rmtree(target, ignore_errors=True)


def undo_unfinished(workspace: Path) -> None:
    """Undo imports whose process has ended; others are not changed."""
    for staging in workspace.glob(f"{_STAGING}*"):
        try:
            text = (staging / JOURNAL).read_text(encoding="utf-8")
            journal = Journal.model_validate_json(text)
        except (OSError, ValidationError):
            continue
        if not is_running(journal.pid, journal.process_started):
            _undo(journal)
            shutil.rmtree(staging, ignore_errors=True)
