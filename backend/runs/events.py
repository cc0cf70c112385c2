"""Events of a run: one JSON object per line, appended by the worker, read by all others.

A line counts only when its newline is written, so a reader never gets half an event. `seq` grows by
one. After a resume, points beyond the checkpoint are invalid; `curve` leaves them out.
"""

import errno
import json
import os
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from backend.files.atomic_files import disk_error
from backend.runs.data_record import Begun

EventType = Literal[
    "started",
    "precision",
    "resumed",
    "step",
    "evaluation",
    "saved",
    "paused",
    "unpaused",
    "adjusted",
    "data-changed",
    "answer",
    "sample",
    "neutral-text",
    "notice",
    "warning",
    "finished",
    "stopped",
    "failed",
    "interrupted",
]


MARKED = frozenset({"saved", "paused", "adjusted", "data-changed"})


class Event(BaseModel):
    """One thing that happened in a run; fields that do not apply are absent."""

    model_config = ConfigDict(frozen=True)

    seq: int
    time: float
    type: EventType
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    exact_match: float | None = None
    token_accuracy: float | None = None
    text: str | None = None
    prompt: str | None = None
    """The question that `text` answers; at step 0 the answer is the base's."""
    reference: str | None = None
    base: str | None = None
    """For a sample: the expected answer, and the answer of the base alone."""
    begun: Begun | None = None
    """What the status says of the data and its plan when a segment begins."""

    @property
    def is_marked(self) -> bool:
        """Whether a chart marks this event at its step."""
        return self.type in MARKED and self.step is not None


class EventWriter:
    """Appends to a run's event file; handles a last line that was cut off by a crash."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            _drop_partial_line(path)
            self._file = path.open("ab", buffering=0)  # a failed write is not repeated
        except OSError as error:
            raise disk_error(error, path) from error
        events = EventReader(path).poll()
        self._seq = events[-1].seq if events else 0

    def write(self, type: EventType, **fields: object) -> Event:
        """Append one event, whole or not at all; raises DiskFull."""
        event = Event.model_validate(
            {"seq": self._seq + 1, "time": time.time(), "type": type, **fields}
        )
        self._append(event.model_dump_json(exclude_none=True).encode() + b"\n")
        self._seq += 1
        return event

    def _append(self, line: bytes) -> None:
        before = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(before)
            raise disk_error(error, self._path) from error

    def close(self) -> None:
        self._file.close()


class EventReader:
    """Reads a growing event file; each poll reads only new lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._events: list[Event] = []
        self._unreadable = 0
        self._refused = ""

    @property
    def problem(self) -> str:
        """A sentence about what could not be read in the file; empty if all could."""
        if self._refused:
            return f"{self._path.name} cannot be read: {self._refused}."
        if not self._unreadable:
            return ""
        lines = "1 line" if self._unreadable == 1 else f"{self._unreadable:,} lines"
        return f"{lines} of {self._path.name} cannot be read and will be ignored."

    def poll(self) -> list[Event]:
        """Return all complete events so far, in order."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return self._events
        except OSError as error:
            self._refused = error.strerror or str(error)
            return self._events
        self._refused = ""
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.split(b"\n")[:-1]:
            event = _parse(line)
            if event is not None:
                self._events.append(event)
            else:
                self._unreadable += 1
        return self._events


class Curve(BaseModel):
    """A run's points, by column; `generation` changes when earlier points become invalid."""

    generation: int = 0
    step: list[int] = []
    loss: list[float] = []
    learning_rate: list[float] = []
    eval_step: list[int] = []
    eval_loss: list[float] = []
    exact_match: list[float] = []
    marks: list[tuple[int, str]] = []


def curve(events: list[Event]) -> Curve:
    """Collect the points of a run's chart from its events."""
    points = Curve()
    for event in events:
        if event.step is None:
            continue
        if event.type == "step" and event.loss is not None:
            points.step.append(event.step)
            points.loss.append(event.loss)
            points.learning_rate.append(event.learning_rate or 0.0)
        elif event.type == "evaluation" and event.loss is not None:
            points.eval_step.append(event.step)
            points.eval_loss.append(event.loss)
            points.exact_match.append(event.exact_match or 0.0)
        elif event.is_marked:
            points.marks.append((event.step, event.type))
        elif event.type == "resumed":
            points = _up_to(points, event.step)
    return points


def _up_to(points: Curve, step: int) -> Curve:
    """Drop the points after the checkpoint that a run was resumed from."""
    kept = sum(1 for s in points.step if s <= step)
    kept_eval = sum(1 for s in points.eval_step if s <= step)
    return Curve(
        generation=points.generation + 1,
        step=points.step[:kept],
        loss=points.loss[:kept],
        learning_rate=points.learning_rate[:kept],
        eval_step=points.eval_step[:kept_eval],
        eval_loss=points.eval_loss[:kept_eval],
        exact_match=points.exact_match[:kept_eval],
        marks=[*(mark for mark in points.marks if mark[0] <= step), (step, "resumed")],
    )


def _parse(line: bytes) -> Event | None:
    try:
        return Event.model_validate(json.loads(line))
    except (ValueError, ValidationError):
        return None  # a line damaged by a full disk must not hide the others


def _drop_partial_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
