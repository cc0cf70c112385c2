"""Summaries of runs for lists, even if files in a folder cannot be read."""

import re
import time
from contextlib import suppress
from pathlib import Path

from backend.catalogue.methods import method_of
from backend.errors import Damaged
from backend.library import BASE_COLOUR
from backend.results import RunSummary
from backend.runs import adjustments
from backend.runs.run_folder import Run
from backend.runs.run_records import End, RunStatus, status_from_events

BROKEN_OFF = ("stopped", "interrupted", "failed")
ENDED_UNSEEN = "This run has ended, but the reason could not be written into its folder."
_STAMP = re.compile(r"(\d{8}-\d{6})-(.+)-[0-9a-f]{4}")


def describe(run: Run) -> RunSummary:
    """Describe a run by its files; a run with an unreadable file is `damaged`."""
    damaged = _damage(run)
    if not damaged:
        return _described(run, run.status())
    try:
        return _damaged(_described(run, status_from_events(run.events_file)), run, damaged)
    except Damaged:
        return _damaged(_unknown(run.folder), run, damaged)


def ended(summary: RunSummary, run: Run, end: End | None) -> RunSummary:
    """Describe a run that is unfinished by its files but that no process trains."""
    end = end or End(state="interrupted", message=ENDED_UNSEEN, cure=run.cure(), error="")
    resumable = run.latest_checkpoint() is not None
    changes = {**end._asdict(), "paused": False, "resumable": resumable}
    return summary.model_copy(update=changes)


def _damage(run: Run) -> list[str]:
    """Return a sentence for each file of a run that cannot be read."""
    said = []
    for read in (lambda: run.request, run.status, lambda: _changes(run)):
        try:
            read()
        except Damaged as error:
            said.append(error.what)
    return said


def _changes(run: Run) -> None:
    """Read the run's changes; a finished run needs them only to be extended."""
    if _state_of(run) != "finished":
        adjustments.read(run.folder)


def _state_of(run: Run) -> str:
    try:
        return run.status().state
    except Damaged:
        return ""


def _damaged(summary: RunSummary, run: Run, damage: list[str]) -> RunSummary:
    alive, goes_on = run.is_alive(), _goes_on(run)
    if alive:
        cure = "It is still being trained."
    elif goes_on:
        cure = "Its checkpoints can be read: Resume continues from the last one."
    else:
        cure = "It cannot be resumed. You can look into its folder or delete it."
    return summary.model_copy(
        update={
            "state": "damaged",
            "paused": False,
            "message": " ".join(damage),
            "cure": cure,
            "resumable": goes_on and not alive,
        }
    )


def _goes_on(run: Run) -> bool:
    """Return whether a damaged run can be resumed: all but its status must be readable."""
    try:
        _ = run.request
        adjustments.read(run.folder)
    except Damaged:
        return False
    unfinished = status_from_events(run.events_file).state != "finished"
    return unfinished and run.latest_checkpoint() is not None


def _unknown(folder: Path) -> RunSummary:
    """Describe a run by its folder's name, because its request cannot be read."""
    found = _STAMP.fullmatch(folder.name)
    created = folder.stat().st_mtime
    if found is not None:
        with suppress(ValueError, OverflowError):
            created = time.mktime(time.strptime(found[1], "%Y%m%d-%H%M%S"))
    status = status_from_events(folder / "events.jsonl")
    return RunSummary(
        id=folder.name,
        name=found[2] if found is not None else folder.name,
        adapter_id="",
        state="damaged",
        colour=BASE_COLOUR,
        data="",
        base_name="",
        method="",
        rank=0,
        created=created,
        begun=created,
        step=status.step,
        total_steps=status.total_steps,
        loss=status.loss,
        eval_loss=status.eval_loss,
        exact_match=status.exact_match,
    )


def _described(run: Run, status: RunStatus) -> RunSummary:
    request = run.request
    done = status.state in BROKEN_OFF
    return RunSummary(
        id=run.id,
        name=request.train.name,
        adapter_id=request.adapter_id,
        state=status.state,
        paused=status.paused and status.state == "running",
        colour=request.colour,
        data=request.train.data,
        base_name=request.base_name,
        precision=status.precision,
        quantization=status.quantization,
        layout=status.layout or "packed",
        layout_note=status.layout_note,
        method=method_of(request.train.adapter).title,
        rank=request.train.adapter.rank,
        experts=request.train.adapter.experts,
        created=request.created,
        begun=max(request.created, status.claimed),
        step=status.step,
        total_steps=status.total_steps,
        loss=status.loss,
        eval_loss=status.eval_loss,
        exact_match=status.exact_match,
        kept_step=status.kept_step,
        tokens_per_second=status.tokens_per_second,
        seconds=status.trained_seconds,
        predicted_seconds=status.predicted_seconds,
        message=status.message,
        cure=status.cure,
        error=status.error,
        peak_memory_bytes=status.peak_memory_bytes,
        predicted_memory_bytes=status.predicted_memory_bytes,
        preparation=status.preparation,
        neutral_text=status.neutral_text,
        retry=status.retry,
        data_change=status.data_change,
        data_changes=status.data.changes if status.data else (),
        launched=status.launched,
        not_extendable=_not_extendable(run) if status.state == "finished" else "",
        resumable=done and run.latest_checkpoint() is not None,
        note=run.note(),
    )


def _not_extendable(run: Run) -> str:
    try:
        return run.not_extendable()
    except Damaged as error:
        return error.what.rstrip(".")
