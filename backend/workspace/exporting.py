"""Exporting a workspace to a zip file: adapters, runs, the session and the queue.

Logs, token caches, uploads, temporary files and commands to a run's processes are not included.
"""

import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from backend.errors import Damaged
from backend.files.atomic_files import make_folder, new_file
from backend.library import Library
from backend.results import ExportedWorkspace, RunSummary
from backend.runs.run_store import UNDER_WAY, Runs
from backend.runs.training_queue import TrainingQueue
from backend.settings import Settings
from backend.workspace.archive import (
    QUEUE,
    SESSION,
    Progress,
    Writer,
    is_part,
    opened,
    require_new_zip,
)
from backend.workspace.session_recipe import Recipe

STAYS = ("launch.json", "result.json", "control")
"""Files of a run that name folders or processes of this machine."""
SAVED_STATES = ("checkpoints", "best")


class Export:
    """One export of a workspace; `run` writes it."""

    def __init__(
        self, settings: Settings, library: Library, runs: Runs, queue: TrainingQueue
    ) -> None:
        self.settings = settings
        self.library = library
        self.runs = runs
        self.queue = queue
        self.left_out: list[str] = []

    def run(self, target: Path, *, checkpoints: bool, progress: Progress) -> ExportedWorkspace:
        """Write the zip file whole or not at all, read it back, and describe it.

        Raises InvalidRequest if the file is not allowed, DiskFull, and what `progress` raises.
        """
        require_new_zip(target, self.settings)
        make_folder(target.parent)
        with new_file(target) as partial:
            adapters, runs = self._write(partial, checkpoints=checkpoints, progress=progress)
            files = _read_back(partial, progress)
        return ExportedWorkspace(
            path=str(target),
            bytes=target.stat().st_size,
            adapters=adapters,
            runs=runs,
            files=files,
            left_out=self.left_out,
        )

    def _write(self, partial: Path, *, checkpoints: bool, progress: Progress) -> tuple[int, int]:
        with zipfile.ZipFile(partial, "x", allowZip64=True) as archive:
            writer = Writer(archive, time.time())
            parts = list(self._parts(checkpoints=checkpoints))
            counts = {"adapters": 0, "runs": 0}
            for number, (kind, title, folder, files) in enumerate(parts):
                progress(f"Writing {title}", number / len(parts))
                counts[kind] += self._add(writer, kind, title, folder, files)
            self._add_settings(writer)
            writer.finish()
        return counts["adapters"], counts["runs"]

    def _parts(self, *, checkpoints: bool) -> Iterator[tuple[str, str, Path, list[Path]]]:
        """Yield the kind, title, folder and files of each adapter and run."""
        for info in self.library.all():
            folder = self.library.folder(info.id)
            yield "adapters", f"the adapter {info.name}", folder, self._files(folder)
        summaries = {summary.id: summary for summary in self.runs.summaries()}
        for run in self.runs.all():
            if (summary := self._ended(summaries.get(run.id), run.id)) is None:
                continue
            files = self._files(run.folder)
            if checkpoints:
                inner = [run.folder / SAVED_STATES[1], *run.checkpoints.glob("checkpoint-*")]
                files += [file for folder in inner for file in self._files(folder)]
            yield "runs", f"the run {summary.name}", run.folder, files

    def _ended(self, summary: RunSummary | None, run_id: str) -> RunSummary | None:
        """Return a run that can be exported; for other runs, note why they are left out."""
        if summary is None or summary.state == "damaged":
            self.left_out.append(f"The run {run_id} cannot be read.")
            return None
        if summary.state in UNDER_WAY:
            self.left_out.append(f"The run {summary.name} is still going on or waiting to begin.")
            return None
        return summary

    def _files(self, folder: Path) -> list[Path]:
        """Return a folder's files for the export; links are left out and noted."""
        found = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.is_symlink():
                self.left_out.append(f"{folder.name}/{path.name} is a link.")
            elif path.is_file() and path.name not in STAYS and not path.name.startswith("failed-"):
                found.append(path)
        return found

    def _add(self, writer: Writer, kind: str, title: str, folder: Path, files: list[Path]) -> int:
        """Add one adapter or run; all its files are opened first, so that they are consistent."""
        names = {file: f"{kind}/{folder.name}/{file.relative_to(folder).as_posix()}"
                 for file in files}  # fmt: skip
        with ExitStack() as stack:
            streams: list[tuple[str, IO[bytes]]] = []
            try:
                for file, name in names.items():
                    if is_part(name):
                        streams.append((name, stack.enter_context(file.open("rb"))))
            except FileNotFoundError:
                self.left_out.append(f"{title.capitalize()} was changed while it was read.")
                return 0
            for name, stream in streams:
                writer.add(name, stream)
        return 1

    def _add_settings(self, writer: Writer) -> None:
        recipe = self._recipe()
        if recipe.base is not None:
            writer.add_text(SESSION, recipe.model_dump_json(indent=1))
        if self.queue.names():
            writer.add_text(QUEUE, self.queue.to_json())

    def _recipe(self) -> Recipe:
        try:
            return Recipe.load(self.settings.session_file)
        except Damaged as error:
            self.left_out.append(f"The session is left out: {error}")
            return Recipe()


def _read_back(path: Path, progress: Progress) -> int:
    """Compare every file with its digest, as the import will; return the number of files."""
    progress("Reading it back", 1.0)
    with opened(path) as reader:
        reader.compare(progress)
        return len(reader.manifest.files)
