"""The conversation on the Chat tab: who answers, what was said, and the answer that is coming.

It lives beside the service and not in a page, so that a reload and a second browser tab see the
same, also in the middle of an answer. Knows nothing of Gradio.
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
"""Keys of the two columns that are no single adapter; an adapter's key is "adapter: its id"."""

ADAPTER = "adapter: "


@dataclass
class Exchange:
    """One question and its answer; `number` is the same in all columns that were asked it."""

    number: int
    question: str
    answer: str = ""
    coming: bool = True
    stopped: bool = False
    """Whether somebody stopped it before it was whole, perhaps before it began."""


@dataclass(frozen=True)
class Column:
    """One column as it is now."""

    key: str
    title: str
    variant: rq.Variant
    colours: tuple[str, ...]
    """One for each adapter; none for the base."""
    exchanges: tuple[Exchange, ...] = ()
    talk: tuple[str, ...] = ()
    """What its conversation belongs to: the base's fingerprint and the adapters' ids.

    Names will not do: another adapter may get one, and every base is called "base" here.
    """


@dataclass
class ChatState:
    """The conversations of all columns. Its methods may be called from any thread."""

    handle: ServiceHandle
    version: int = 0
    failure: Failure | None = None
    returned: str = ""
    """The question of a failed answer, which goes back to its box."""
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
        """Return who can answer: (title, key)."""
        found = [("base", BASE)]
        found += [(_title(info), ADAPTER + info.id) for info in session_facts.answering(snapshot)]
        if len(snapshot.active) > 1:
            found.append((f"on now: {describe(snapshot.active)}", ON_NOW))
        return found

    def chosen(self, snapshot: rs.Snapshot) -> list[str]:
        """Return who answers: as chosen, else the base and the newest or active adapter."""
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
        """Let these answer from now on; earlier conversations of others come back with them."""
        with self._lock:
            self._chosen = list(dict.fromkeys(keys))[:MOST]
            self.version += 1

    def strength(self, adapter_id: str) -> float:
        """Return how strongly an adapter answers here."""
        return self._strengths.get(adapter_id, 1.0)

    def set_strength(self, adapter_id: str, strength: float) -> None:
        """Let an adapter answer more or less strongly from the next question on."""
        with self._lock:
            self._strengths[adapter_id] = strength
            self.version += 1

    def columns(self, snapshot: rs.Snapshot) -> list[Column]:
        """Return all columns with what was said in them."""
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
        """Start all answers and return at once; raises what stands in the way."""
        with self._lock:
            columns = self.columns(self.handle.service.snapshot())
            if not columns:
                raise errors.InvalidRequest("Nobody is chosen to answer.", cure="Choose the base.")
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
        """Keep why a question was not asked at all."""
        with self._lock:
            self.failure, self._refused_as_busy = explain(error), isinstance(error, errors.Busy)
            self.version += 1

    def trouble(self, *, free: bool) -> Failure | None:
        """Return what to say of the last question; that the model was busy only while it is."""
        return None if free and self._refused_as_busy else self.failure

    def stop(self) -> None:
        """Stop the answers that are coming; what was said stays."""
        if (job := self._job) is not None:
            self.handle.service.stop_answer(job)

    def clear(self) -> None:
        """Forget what was said, and stop what is coming."""
        self.stop()
        with self._lock:
            self._said.clear()
            self.failure, self.returned = None, ""
            self.version += 1

    def _listen(self, job: Job, talks: list[tuple[str, ...]]) -> None:
        """Take the pieces of all columns until the answers are whole."""
        failure = None
        try:
            for column, text in job.column_pieces():
                with self._lock:
                    if (exchange := self._coming(talks[column])) is not None:
                        exchange.answer += text
                        self.version += 1
            self._note_stopped(talks, job.result())
        except Exception as error:  # whatever it is, the page must not wait for ever
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
                # an unanswered question would make every later one fail too
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
        if each.stopped and not each.answer.strip():  # it was never asked, or said nothing yet
            continue
        messages.append(rq.Message(role="user", content=each.question))
        messages.append(rq.Message(role="assistant", content=each.answer.strip()))
    return [*messages, rq.Message(role="user", content=question)]
