"""The Hot-swap tab: choose adapters, prepare the slot, swap with one click, leave the slot."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.adapters.converter import Converter
from ui.components import data_sets
from ui.components.blockers import no_base
from ui.components.event_options import QUIET
from ui.components.feedback import Failure, explain, failure_card
from ui.components.forms import Form
from ui.components.safe_view import Node, button, clicked, el, safe_view
from ui.components.service_handle import ServiceHandle, error_of
from ui.hotswap import slot_view
from ui.hotswap.slot_messages import Said, said_view

REDRAW_SECONDS = 0.06
SWAP_SECONDS = 300.0
NOTHING: Node = el("div")
PREPARE, LEAVE = "prepare-hotswap", "end-hotswap"
ANSWERING = ("chat", "side-by-side", "compare", "score", "next-token")
PATIENCE_SECONDS = 10.0
"""The longest time that leaving waits for an answer to stop."""


class HotswapTab:
    """Builds the tab and handles its events."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.form = Form(rq.PrepareHotswap)
        self.ticked = gr.State([])
        """A copy of the value of `names`, used as the input of `show`: Gradio 6.31 rejects an event
        whose input is no longer among the choices."""
        self.offered = gr.State([])
        """The adapters that this page has offered; new ones are ticked automatically."""
        self.said: Said | None = None
        self.refused: Failure | None = None
        self.proven: tuple[Any, ...] | None = None
        """The session state after leaving the slot; the verification is only valid for it."""
        with gr.Column(elem_classes="aw-column") as self.before:
            self._build_choice()
        with gr.Column(visible=False, elem_classes="aw-column") as self.inside:
            self._build_slot()
        self.note = safe_view(NOTHING, label="The slot")

    def _build_choice(self) -> None:
        gr.Markdown("## Adapters that share the slot", elem_classes="aw-head")
        gr.Markdown(
            "The model is compiled once, around a slot. Then one click swaps the adapter, with no "
            "recompiling. Ranks and targets may differ.",
            elem_classes="aw-help",
        )
        self.names = gr.CheckboxGroup([], show_label=False, label="Adapters", elem_id="slot-names")
        self.misfits = safe_view(NOTHING, label="Adapters that cannot share a slot")
        self.converter = Converter(self.handle, "slot")
        self.form.add("compile", elem_id="slot-compile")
        self.prepare = gr.Button(
            slot_view.prepare_label([], None),
            variant="primary",
            interactive=False,
            elem_id="slot-prepare",
        )

    def _build_slot(self) -> None:
        gr.Markdown("## Who answers", elem_classes="aw-head")
        self.swaps = safe_view(NOTHING, label="Who answers", elem_id="slot-swaps")
        self.question = gr.Textbox(
            label="Test question",
            info="Answered again after each swap.",
            value=self._first_question(),
            max_lines=4,
            elem_id="slot-question",
        )
        self.answer = safe_view(NOTHING, label="The answer", elem_id="slot-answer")
        self.times = safe_view(NOTHING, label="Times", elem_id="slot-times")
        self.leave = gr.Button("Leave the slot", size="sm", elem_classes="aw-auto")

    def _first_question(self) -> str:
        return next((s.try_prompt for s in data_sets.bundled() if s.try_prompt), "Where are you?")

    # -- wiring ----------------------------------------------------------------------------------

    @property
    def watched(self) -> dict[str, Any]:
        """This browser tab's own inputs of `show`: what the button would prepare."""
        return {
            "slot_names": self.ticked,
            "slot_offered": self.offered,
            "slot_compile": self.form.components["compile"],
        }

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the page is redrawn."""
        choice = {"names": self.ticked, **self.form.inputs}
        said = [self.swaps, self.answer]
        return [
            self.prepare.click(self.start, inputs_kwargs=choice, outputs=None, **QUIET),
            self.names.input(
                self.choose, self.names, self.ticked, trigger_mode="always_last", **QUIET
            ),
            self.form.components["compile"].input(self.forget_failure, None, None, **QUIET),
            self.misfits.click(self.converter.convert, self.converter.rank, None, **QUIET),
            self.swaps.click(self.swap, self.question, said, **QUIET),
            self.question.submit(self.ask_again, self.question, said, **QUIET),
            self.leave.click(self.end, None, None, **QUIET),
        ]

    # -- events ----------------------------------------------------------------------------------

    def choose(self, names: list[str]) -> list[str]:
        """Store the ticks."""
        self.forget_failure()
        return names

    def forget_failure(self) -> None:
        """Clear an earlier error, because the form changed."""
        self.handle.forget_failure(PREPARE)
        self._refuse(None)

    def start(self, names: list[str], **values: Any) -> None:
        """Start preparing the slot; returns at once."""
        self.converter.forget()
        self.handle.forget(LEAVE)
        self._start_with(lambda: rq.PrepareHotswap(adapters=names, **self.form.read(values)))

    def end(self) -> None:
        """Leave the slot, unless that is in progress; stops the current answer."""
        snapshot = self.handle.service.snapshot()
        if snapshot.slot is None or (snapshot.job and snapshot.job.operation == LEAVE):
            return
        self._stop_answer()
        self.proven = None
        self._start_with(rq.EndHotswap)

    def _stop_answer(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while (job := self.handle.service.snapshot().job) and job.operation in ANSWERING:
            if time.monotonic() > until:
                return
            if not job.stopping:
                self.handle.service.stop()
            time.sleep(REDRAW_SECONDS)

    def swap(self, event: gr.EventData, question: str) -> Iterator[tuple[Any, Any]]:
        """Swap to the clicked adapter, and let it answer the test question."""
        act, name = clicked(event)
        if act != "swap":
            yield gr.skip(), gr.skip()
            return
        try:
            swapped = self.handle.start(rq.Hotswap(adapter=name)).result(timeout=SWAP_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            yield gr.skip(), self._say(failure=explain(error))
            return
        self._say(name, question, "", swapped)
        yield slot_view.swap_buttons(self.handle.service.snapshot()), gr.skip()
        yield from self._let_answer(name, question, swapped)

    def ask_again(self, question: str) -> Iterator[tuple[Any, Any]]:
        """Let the adapter in the slot answer a changed question."""
        slot = self.handle.service.snapshot().slot
        if slot is None:
            yield gr.skip(), gr.skip()
            return
        yield from self._let_answer(slot.current, question, None)

    def _let_answer(
        self, name: str, question: str, swapped: rs.Swapped | None
    ) -> Iterator[tuple[Any, Any]]:
        try:
            for words in self._answer(name, question):
                yield gr.skip(), self._say(name, question, words, swapped)
        except errors.WorkbenchError as error:
            yield gr.skip(), self._say(failure=explain(error))

    def _say(
        self,
        name: str = "",
        question: str = "",
        words: str = "",
        swap: rs.Swapped | None = None,
        *,
        failure: Failure | None = None,
    ) -> Node:
        """Store the message for all browser tabs, and return its view."""
        snapshot = self.handle.service.snapshot()
        prepared = snapshot.slot.prepared if snapshot.slot is not None else 0.0
        self.said = Said(prepared, name, (question or "").strip(), words, swap, failure)
        self.handle.version += 1
        return said_view(self.said, snapshot)

    def _answer(self, name: str, question: str) -> Iterator[str]:
        if not (question or "").strip():
            yield "Enter a test question to see an answer."
            return
        message = rq.Message(role="user", content=question.strip())
        variant: rq.Variant = [(name, 1.0)] if name else []
        words, drawn = "", 0.0
        request = rq.Chat(messages=[message], variant=variant)
        pieces = self.handle.service.chat(request, caller="page")
        try:
            for piece in pieces:
                words += piece
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield words
        finally:
            pieces.close()
        yield words or "(an empty answer)"

    def _start_with(self, build: Callable[[], rq.Request]) -> None:
        try:
            self._refuse(None)
            self.handle.start(build())
        except errors.WorkbenchError as error:
            self._refuse(explain(error))

    def _refuse(self, failure: Failure | None) -> None:
        self.refused = failure
        self.handle.version += 1

    # -- drawing ---------------------------------------------------------------------------------

    def show(
        self,
        snapshot: rs.Snapshot,
        slot_names: list[str] | None = None,
        slot_offered: list[str] | None = None,
        slot_compile: bool = True,
    ) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session."""
        slot, preparing = snapshot.slot, self._being_prepared(snapshot)
        blocked = slot_view.why_not(snapshot)
        offered = slot_offered or []
        names = [info.name for info in slot_view.candidates(snapshot)]
        if snapshot.base is None:  # perhaps only for a moment: keep the ticks
            names = offered
        unticked = set(offered) - set(slot_names or []) if offered else self._left_out(names)
        ticked = preparing or [name for name in names if name not in unticked]
        moved = names != offered or (bool(preparing) and preparing != slot_names)
        layers = snapshot.base.layers if snapshot.base is not None else 0
        cost = self.handle.service.compile_seconds(layers)
        return {
            self.before: gr.update(visible=slot is None),
            self.inside: gr.update(visible=slot is not None),
            self.names: self._choice(snapshot, ticked if moved else None, locked=bool(preparing)),
            self.ticked: ticked if moved else gr.skip(),
            self.offered: names,
            self.misfits: slot_view.misfits(snapshot),
            **self.converter.show(snapshot, needed=slot_view.can_convert(snapshot)),
            self.prepare: gr.update(
                value=slot_view.prepare_label(ticked, cost if slot_compile else None),
                interactive=bool(ticked) and not blocked,
            ),
            self.swaps: slot_view.swap_buttons(snapshot),
            self.times: slot_view.times(slot) if slot else NOTHING,
            self.answer: said_view(self.said, snapshot),
            self.leave: gr.update(
                interactive=snapshot.job is None or snapshot.job.operation in ANSWERING
            ),
            self.note: self._note(snapshot, blocked, ticked),
        }

    def _being_prepared(self, snapshot: rs.Snapshot) -> list[str]:
        """Return the adapters of the slot that is being prepared, if the page started it."""
        asked, job = self.handle.asked(PREPARE), snapshot.job
        if job is None or job.operation != PREPARE or not isinstance(asked, rq.PrepareHotswap):
            return []
        return list(asked.adapters)

    def _left_out(self, names: list[str]) -> set[str]:
        """Return the adapters that a new page leaves unticked: those not in the last slot."""
        asked = self.handle.asked(PREPARE)
        if not isinstance(asked, rq.PrepareHotswap) or not set(asked.adapters) & set(names):
            return set()
        return set(names) - set(asked.adapters)

    def _choice(self, snapshot: rs.Snapshot, ticked: list[str] | None, *, locked: bool) -> Any:
        """Offer the candidates; ticks are sent only when the candidates change.

        Otherwise they could undo a tick that the user sets at the same time.
        """
        able = slot_view.candidates(snapshot)
        if snapshot.base is None:
            return gr.skip()
        choices = [(f"{info.name} · {info.method} rank {info.rank}", info.name) for info in able]
        if ticked is None:
            return gr.update(choices=choices, interactive=not locked)
        return gr.update(choices=choices, value=ticked, interactive=not locked)

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` draws."""
        return [
            self.before, self.inside, self.names, self.ticked, self.offered, self.misfits,
            *self.converter.drawn, self.prepare, self.swaps, self.answer, self.times, self.leave,
            self.note,
        ]  # fmt: skip

    def _note(self, snapshot: rs.Snapshot, blocked: str, ticked: list[str]) -> Node:
        job = snapshot.job
        if job is not None and job.operation in (PREPARE, LEAVE):
            doing = "Stopping" if job.stopping else job.text or "this takes a moment"
            return el("p", f"{job.title}: {doing}.", cls="aw-quiet")
        failure = self.refused or self._failure(snapshot)
        if failure is not None:
            return failure_card(failure)
        if obstacle := no_base(snapshot):
            return obstacle
        if snapshot.slot is not None:
            return el("p", _held(snapshot.slot), cls="aw-quiet")
        if blocked and not slot_view.candidates(snapshot):
            return _no_candidates(blocked)
        if blocked:
            return el("p", blocked, cls="aw-quiet")
        return el(
            "div",
            self._proof(snapshot),
            slot_view.width(snapshot, ticked),
            slot_view.strengths(snapshot) if ticked else None,
        )

    def _failure(self, snapshot: rs.Snapshot) -> Failure | None:
        """Return why preparing or leaving the slot failed, if that is still relevant."""
        if snapshot.slot is None and self.handle.failure(LEAVE) is not None:
            return None  # the slot was left anyway
        prepared = self.handle.last(PREPARE)
        if prepared is not None and isinstance(error_of(prepared), errors.WorkerDied):
            return None  # the bar at the top says so
        return self.handle.last_failure(PREPARE, LEAVE)

    def _proof(self, snapshot: rs.Snapshot) -> Node | None:
        """Show that leaving the slot restored the session, until something changes."""
        left = self.handle.outcome(LEAVE)
        if left is None or snapshot.base is None:
            return None
        adapters = tuple(adapter.id for adapter in snapshot.adapters)
        now = (snapshot.base.fingerprint, snapshot.base.quantization, snapshot.active, adapters)
        if self.proven is None:
            self.proven = now
        if self.proven != now:
            self.handle.forget(LEAVE)
            return None
        return slot_view.left(left)


def _no_candidates(why: str) -> Node:
    ways = el(
        "div", button("Train one", "go", "train"), button("Add one", "go", "load"), cls="aw-actions"
    )
    return el("div", el("p", why, cls="aw-quiet"), ways)


def _held(slot: rs.SlotStatus) -> str:
    count = len(slot.adapters)
    who = f"{count} adapters are" if count > 1 else f"{slot.adapters[0]} is"
    return f"{who} in a slot of rank {slot.rank}. Leave the slot to train, blend, merge or load."
