"""Runs of an unpacked export, before they are added to the workspace: checks and new ids."""

import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from backend.errors import ModelError, WorkbenchError
from backend.files.atomic_files import write_text
from backend.library import COLOURS
from backend.requests import Train
from backend.runs import adjustments
from backend.runs.run_store import LONGEST_NOTE, RUN_ID, UNDER_WAY, Run, RunRequest, Runs, RunStatus
from backend.workspace.archive import MOST_TEXT_BYTES, Entry, digest_of

EVENTS = "events.jsonl"
REWRITTEN = ("request.json", "status.json")
"""Files with ids and processes of a workspace, which are therefore rewritten."""
_ADAPTER_ID = re.compile(r"ad_[0-9a-f]{6,32}")


class Staged(NamedTuple):
    """A run of the export in its staged folder."""

    folder: Path
    request: RunRequest
    status: RunStatus


def read(folder: Path) -> Staged:
    """Read a staged run; raises ModelError if it is not valid for a workspace."""
    run = Run(folder)
    try:
        if any((folder / name).stat().st_size > MOST_TEXT_BYTES for name in REWRITTEN):
            raise ValueError("too large")
        request, status = run.request, run.status()
        adjustments.read(folder)
    except (OSError, ValueError, WorkbenchError):
        raise ModelError("its request or status cannot be read") from None
    sound = request.run_id == folder.name and _ADAPTER_ID.fullmatch(request.adapter_id)
    if not sound or not RUN_ID.fullmatch(folder.name) or not math.isfinite(request.created):
        raise ModelError("its ids are not valid for a run")
    if status.state in UNDER_WAY:
        raise ModelError("it was still running")
    if run.note_file.is_file() and run.note_file.stat().st_size > 4 * LONGEST_NOTE:
        raise ModelError("its note is too long")
    return Staged(folder, request, status)


def find_same(staged: Staged, entry: Entry | None, runs: Runs) -> Run | None:
    """Return the run of this workspace that is the same run at the same step, if any."""
    for run in runs.all():
        try:
            same = run.request.created == staged.request.created
        except (OSError, ValueError, WorkbenchError):
            continue
        if same and (digest_of(run.events_file) if run.events_file.is_file() else None) == entry:
            return run
    return None


def free_id(wanted: str, runs: Runs) -> str:
    """Return a run id that is not in use."""
    number, free = 1, wanted
    while (runs.root / free).exists():
        number += 1
        free = f"{wanted[:90]}-{number}"
    return free


def write(staged: Staged, *, run_id: str, adapter_id: str, train: Train) -> None:
    """Write the staged run's request and status for this workspace; no process trains it."""
    colour = staged.request.colour if staged.request.colour in COLOURS else COLOURS[0]
    request = staged.request.model_copy(
        update={"run_id": run_id, "adapter_id": adapter_id, "train": train, "colour": colour}
    )
    status = staged.status.model_copy(
        update={"pid": 0, "process_started": 0.0, "host": "", "locked": False, "paused": False}
    )
    write_text(staged.folder / "request.json", request.model_dump_json(indent=1))
    write_text(staged.folder / "status.json", status.model_dump_json(indent=1))


def missing_paths(request: RunRequest) -> Iterator[str]:
    """Yield the files and folders that a run uses and that do not exist here."""
    base = request.base.source if request.base is not None else ""
    yield from missing(request.train)
    yield from (path for path in {request.base_source, base} if is_missing(path))


def missing(train: Train) -> Iterator[str]:
    """Yield the data that a training request uses and that does not exist here."""
    yield from (path for path in (train.data, train.held_out or "") if is_missing(path))


def is_missing(source: str) -> bool:
    """Return whether a source is an absolute path that does not exist here; `~` counts as one."""
    whole = PurePosixPath(source).is_absolute() or PureWindowsPath(source).is_absolute()
    return (whole or source.startswith("~")) and not Path(source).expanduser().exists()


def folders(staging: Path) -> Iterator[Path]:
    """Yield the folders of the staged runs."""
    yield from (path for path in sorted((staging / "runs").glob("*")) if path.is_dir())
