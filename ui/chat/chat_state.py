"""The state of the Chat tab: the chosen models, their conversations, and the current answers.

It belongs to the app and not to a browser tab, so that a reload and a second tab show the same,
even in the middle of an answer. Knows nothing of Gradio.
"""

import threading
from dataclasses import dataclass, field, replace
from typing import Any

from backend import Job, errors
from backend import requests as rq
from backend import results as rs
from ui.components import session_facts
from ui.components.feedback import Failure, explain
from ui.components.service_handle import ServiceHandle

MOST = 6
BASE = "base"
ON_NOW = "on now"
"""Keys of the two columns without a single adapter; an adapter's key is "adapter: <id>"."""

ADAPTER = "adapter: "


@dataclass
class Exchange:
    """One question and its answer; `number` is the same in all columns for one question."""

    number: int
    question: str
    answer: str = ""
    coming: bool = True
    stopped: bool = False
    """Whether the user stopped it before it was complete, perhaps before it began."""


@dataclass(frozen=True)
class Column:
    """The current state of one column."""

    key: str
    title: str
    variant: rq.Variant
    colours: tuple[str, ...]
    """One colour for each adapter; empty for the base."""
    exchanges: tuple[Exchange, ...] = ()
    talk: tuple[str, ...] = ()
    """The key of its conversation: the base's fingerprint and the adapters' ids.

    Names are not enough: another adapter can get a name, and every base is called "base" here.
    """


@dataclass
class ChatState:
    """The conversations of all columns. Its methods may be called from any thread."""

    handle: ServiceHandle
    version: int = 0
    failure: Failure | None = None
    returned: str = ""
    """The question of a failed answer, which is put back into the text field."""
    _refused_as_busy: bool = False
    _chosen: list[str] | None = None
    _strengths: dict[str, float] = field(default_factory=dict)
    """By adapter id."""
    _said: dict[tuple[str, ...], list[Exchange]] = field(default_factory=dict)
    """By `Column.talk`."""
    _count: int = 0
    _job: Job | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # -- who answers -----------------------------------------------------------------------------

    def choices(self, snapshot: rs.Snapshot) -> list[tuple[str, str]]:
        """Return what can answer, as (title, key)."""
        found = [("base", BASE)]
        found += [(_title(info), ADAPTER + info.id) for info in session_facts.answering(snapshot)]
        if len(snapshot.active) > 1:
            found.append((f"on now: {describe(snapshot.active)}", ON_NOW))
        return found

    def chosen(self, snapshot: rs.Snapshot) -> list[str]:
        """Return the chosen keys; by default the base and the newest or active adapter."""
        possible = [key for _, key in self.choices(snapshot)]
        if self._chosen is not None:
            kept = [key for key in self._chosen if key in possible]
            if kept or not self._chosen:
                return kept[:MOST]
        active = {ADAPTER + adapter_id for adapter_id in _ids(snapshot.active, snapshot)}
        on = [key for key in possible if key in active]
        if len(on) > 1:
            return [BASE, ON_NOW]
        return [BASE, *(on or [key for key in possible if key.startswith(ADAPTER)][-1:])]

    def choose(self, keys: list[str]) -> None:
        """Choose what answers from now on; earlier conversations reappear with their column."""
        with self._lock:
            self._chosen = list(dict.fromkeys(keys))[:MOST]
            self.version += 1

    def strength(self, adapter_id: str) -> float:
        """Return the strength of an adapter in Chat."""
        return self._strengths.get(adapter_id, 1.0)

    def set_strength(self, adapter_id: str, strength: float) -> None:
        """Set the strength of an adapter, from the next question on."""
        with self._lock:
            self._strengths[adapter_id] = strength
            self.version += 1

    def columns(self, snapshot: rs.Snapshot) -> list[Column]:
        """Return all columns with their conversations."""
        with self._lock:
            return [self._column(key, snapshot) for key in self.chosen(snapshot)]

    def _column(self, key: str, snapshot: rs.Snapshot) -> Column:
        variant = self._variant(key, snapshot)
        fingerprint = snapshot.base.fingerprint if snapshot.base else ""
        talk = (fingerprint, *([ON_NOW] if key == ON_NOW else []), *_ids(variant, snapshot))
        said = tuple(replace(each) for each in self._said.get(talk, []))
        known = {
            info.name: info for info in (*snapshot.adapters, *session_facts.answering(snapshot))
        }
        colours = tuple(known[name].colour for name, _ in variant if name in known)
        half = any(
            session_facts.is_half_trained(known[name]) for name, _ in variant if name in known
        )
        title = f"{describe(variant)}, half-trained" if half else describe(variant)
        return Column(key, title, variant, colours, said, talk)

    def _variant(self, key: str, snapshot: rs.Snapshot) -> rq.Variant:
        if key == BASE:
            return []
        if key == ON_NOW:
            return list(snapshot.active)
        info = next(info for info in session_facts.answering(snapshot) if ADAPTER + info.id == key)
        return [(info.name, self.strength(info.id) if info.strength == "any" else 1.0)]

    # -- asking ----------------------------------------------------------------------------------

    @property
    def asking(self) -> bool:
        return self._job is not None

    def ask(self, question: str, settings: dict[str, Any]) -> None:
        """Start all answers and return at once; raises an error if that is not possible."""
        with self._lock:
            columns = self.columns(self.handle.service.snapshot())
            if not columns:
                raise errors.InvalidRequest(
                    "No model is chosen.", cure="Choose the base, for example."
                )
            request = rq.SideBySide(
                conversations=[_messages(column, question) for column in columns],
                variants=[column.variant for column in columns],
                **settings,
            )
            self.failure, self.returned, self._refused_as_busy = None, "", False
            job = self._job = self.handle.start(request)
            self._count += 1
            for column in columns:
                said = self._said.setdefault(column.talk, [])
                said.append(Exchange(self._count, question))
            self.version += 1
        talks = [column.talk for column in columns]
        threading.Thread(target=self._listen, args=(job, talks), daemon=True).start()

    def refuse(self, error: errors.WorkbenchError) -> None:
        """Store why a question could not be asked."""
        with self._lock:
            self.failure, self._refused_as_busy = explain(error), isinstance(error, errors.Busy)
            self.version += 1

    def trouble(self, *, free: bool) -> Failure | None:
        """Return the error of the last question; "busy" errors only while the model is busy."""
        return None if free and self._refused_as_busy else self.failure

    def stop(self) -> None:
        """Stop the current answers; the text so far stays."""
        if (job := self._job) is not None:
            self.handle.service.stop_answer(job)

    def clear(self) -> None:
        """Clear all conversations, and stop the current answers."""
        self.stop()
        with self._lock:
            self._said.clear()
            self.failure, self.returned = None, ""
            self.version += 1

    def _listen(self, job: Job, talks: list[tuple[str, ...]]) -> None:
        """Receive the pieces of all columns until the answers are complete."""
        failure = None
        try:
            for column, text in job.column_pieces():
                with self._lock:
                    if (exchange := self._coming(talks[column])) is not None:
                        exchange.answer += text
                        self.version += 1
            self._note_stopped(talks, job.result())
        except Exception as error:  # any error: the page must not wait for ever
            failure = explain(error)
        with self._lock:
            self._end(talks, failure)

    def _note_stopped(self, talks: list[tuple[str, ...]], result: rs.SideAnswers) -> None:
        with self._lock:
            for talk, answer in zip(talks, result.answers, strict=True):
                if (exchange := self._coming(talk)) is not None:
                    exchange.stopped = answer.stopped

    def _end(self, talks: list[tuple[str, ...]], failure: Failure | None) -> None:
        for talk in talks:
            exchange = self._coming(talk)
            if exchange is None:
                continue
            exchange.coming = False
            if failure is not None:
                # an unanswered question would make all later ones fail
                self._said[talk].remove(exchange)
                self.returned = exchange.question
        self.failure, self._job = failure, None
        self.version += 1

    def _coming(self, talk: tuple[str, ...]) -> Exchange | None:
        said = self._said.get(talk, [])
        return said[-1] if said and said[-1].coming else None


def _ids(variant: rq.Variant, snapshot: rs.Snapshot) -> list[str]:
    known = (*snapshot.adapters, *session_facts.answering(snapshot))
    ids = {info.name: info.id for info in known}
    return [ids[name] for name, _ in variant if name in ids]


def describe(variant: rq.Variant) -> str:
    """Name a variant: "pirate", "pirate 0.5 + polite"."""
    if not variant:
        return "base"
    return " + ".join(name if s == 1 else f"{name} {s:g}" for name, s in variant)


def _title(info: rs.AdapterInfo) -> str:
    half = f"half-trained, step {info.steps:,}" if session_facts.is_half_trained(info) else ""
    return f"{info.name} ({half})" if half else info.name


def _messages(column: Column, question: str) -> list[rq.Message]:
    messages = []
    for each in column.exchanges:
        if each.stopped and not each.answer.strip():  # stopped before the first token
            continue
        messages.append(rq.Message(role="user", content=each.question))
        messages.append(rq.Message(role="assistant", content=each.answer.strip()))
    return [*messages, rq.Message(role="user", content=question)]
