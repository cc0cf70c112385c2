"""The Hot-swap tab: choose adapters, prepare the slot, change the adapter with one press, leave."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui import data_sets, slot_view
from ui.bench import Bench
from ui.converter import Converter
from ui.feedback import explain, failure_card
from ui.forms import Form
from ui.obstacles import no_base
from ui.safe_view import Node, chip, clicked, el, safe_view
from ui.session_bar import BASE_COLOUR
from ui.wiring import QUIET

REDRAW_SECONDS = 0.06
SWAP_SECONDS = 300.0
NOTHING: Node = el("div")
OPERATIONS = ("prepare-hotswap", "end-hotswap")


class HotswapTab:
    """Builds the tab and answers its events."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.form = Form(rq.PrepareHotswap)
        self.ticked = gr.State([])
        """What `names` shows. It is watched in its place: Gradio 6.31 refuses every drawing that is
        asked for with a tick that has just left the choices."""
        self.offered = gr.State([])
        """The adapters that this page has offered; one that comes later is ticked by itself."""
        with gr.Column(elem_classes="aw-column") as self.before:
            self._build_choice()
        with gr.Column(visible=False, elem_classes="aw-column") as self.inside:
            self._build_slot()
        self.note = safe_view(NOTHING, label="The slot")

    def _build_choice(self) -> None:
        gr.Markdown("## Adapters that share the slot", elem_classes="aw-head")
        gr.Markdown(
            "The model is compiled once, around a slot. Then a press changes the adapter in it, "
            "and nothing is compiled again. Ranks and targets may differ.",
            elem_classes="aw-help",
        )
        self.names = gr.CheckboxGroup([], show_label=False, label="Adapters", elem_id="slot-names")
        self.misfits = safe_view(NOTHING, label="Adapters that cannot share a slot")
        self.converter = Converter(self.bench, "slot")
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
            label="Standing question",
            info="Answered anew after each swap.",
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
        """What decides what the button prepares."""
        return {
            "slot_names": self.ticked,
            "slot_offered": self.offered,
            "slot_compile": self.form.components["compile"],
        }

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the whole page is drawn again."""
        choice = {"names": self.ticked, **self.form.inputs}
        said = [self.swaps, self.answer]
        return [
            self.prepare.click(self.start, inputs_kwargs=choice, outputs=self.note, **QUIET),
            self.names.input(
                self.choose, self.names, self.ticked, trigger_mode="always_last", **QUIET
            ),
            self.form.components["compile"].input(self.forget_failure, None, None, **QUIET),
            self.misfits.click(self.converter.convert, self.converter.rank, None, **QUIET),
            self.swaps.click(self.swap, self.question, said, **QUIET),
            self.question.submit(self.ask_again, self.question, said, **QUIET),
            self.leave.click(self.end, None, [self.note, self.answer], **QUIET),
        ]

    # -- events ----------------------------------------------------------------------------------

    def choose(self, names: list[str]) -> list[str]:
        """Take over the ticks."""
        self.forget_failure()
        return names

    def forget_failure(self) -> None:
        """Something else is to be prepared: an earlier failure says nothing about it."""
        self.bench.forget_failure("prepare-hotswap")

    def start(self, names: list[str], **values: Any) -> Node:
        """Start preparing the slot and return at once."""
        self.converter.forget()
        return self._start_with(lambda: rq.PrepareHotswap(adapters=names, **self.form.read(values)))

    def end(self) -> tuple[Node, Node]:
        """Leave the slot."""
        return self._start_with(rq.EndHotswap), NOTHING

    def swap(self, event: gr.EventData, question: str) -> Iterator[tuple[Any, Any]]:
        """Swap to the pressed adapter and let it answer the standing question at once."""
        act, name = clicked(event)
        if act != "swap":
            yield gr.skip(), gr.skip()
            return
        try:
            swapped = self.bench.start(rq.Hotswap(adapter=name)).result(timeout=SWAP_SECONDS)
            yield slot_view.swap_buttons(self.bench.service.snapshot()), gr.skip()
            for words in self._answer(name, question):
                yield gr.skip(), slot_view.answer(self._chip(name), words, swapped)
        except (errors.WorkbenchError, TimeoutError) as error:
            yield gr.skip(), failure_card(explain(error))

    def ask_again(self, question: str) -> Iterator[tuple[Any, Any]]:
        """Let whoever is in the slot answer a changed question."""
        slot = self.bench.service.snapshot().slot
        if slot is None:
            yield gr.skip(), gr.skip()
            return
        try:
            for words in self._answer(slot.current, question):
                yield gr.skip(), slot_view.answer(self._chip(slot.current), words, None)
        except errors.WorkbenchError as error:
            yield gr.skip(), failure_card(explain(error))

    def _answer(self, name: str, question: str) -> Iterator[str]:
        if not (question or "").strip():
            yield "Write a standing question to see an answer."
            return
        message = rq.Message(role="user", content=question.strip())
        variant: rq.Variant = [(name, 1.0)] if name else []
        words, drawn = "", 0.0
        request = rq.Chat(messages=[message], variant=variant)
        pieces = self.bench.service.chat(request, caller="page")
        try:
            for piece in pieces:
                words += piece
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield words
        finally:
            pieces.close()
        yield words or "(an empty answer)"

    def _chip(self, name: str) -> Node:
        colours = {info.name: info.colour for info in self.bench.service.library.all()}
        return chip(name or slot_view.BASE_LABEL, colours.get(name, BASE_COLOUR))

    def _start_with(self, build: Callable[[], rq.Request]) -> Node:
        try:
            self.bench.start(build())
        except errors.WorkbenchError as error:
            return failure_card(explain(error))
        return NOTHING

    # -- drawing ---------------------------------------------------------------------------------

    def show(
        self,
        snapshot: rs.Snapshot,
        slot_names: list[str] | None = None,
        slot_offered: list[str] | None = None,
        slot_compile: bool = True,
    ) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session."""
        slot = snapshot.slot
        blocked = slot_view.why_not(snapshot)
        offered = slot_offered or []
        names = [info.name for info in slot_view.candidates(snapshot)]
        if snapshot.base is None:  # for a while, perhaps: what was ticked comes back with it
            names = offered
        unticked = set(offered) - set(slot_names or [])
        ticked = [name for name in names if name not in unticked]
        moved = names != offered
        layers = snapshot.base.layers if snapshot.base is not None else 0
        cost = self.bench.service.compile_seconds(layers)
        return {
            self.before: gr.update(visible=slot is None),
            self.inside: gr.update(visible=slot is not None),
            self.names: self._choice(snapshot, ticked if moved else None),
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
            self.leave: gr.update(interactive=snapshot.job is None),
            self.note: self._note(snapshot, blocked, ticked),
        }

    def _choice(self, snapshot: rs.Snapshot, ticked: list[str] | None) -> Any:
        """Offer who can share the slot; ticks are sent only with another offer.

        Else they would undo what somebody ticks while they are on their way.
        """
        able = slot_view.candidates(snapshot)
        if snapshot.base is None:
            return gr.skip()
        choices = [(f"{info.name} · {info.method} rank {info.rank}", info.name) for info in able]
        if ticked is None:
            return gr.update(choices=choices)
        return gr.update(choices=choices, value=ticked)

    @property
    def drawn(self) -> list[Any]:
        """What `show` draws."""
        return [
            self.before, self.inside, self.names, self.ticked, self.offered, self.misfits,
            *self.converter.drawn, self.prepare, self.swaps, self.times, self.leave, self.note,
        ]  # fmt: skip

    def _note(self, snapshot: rs.Snapshot, blocked: str, ticked: list[str]) -> Node:
        job = snapshot.job
        if job is not None and job.operation in OPERATIONS:
            return el("p", f"{job.title}: {job.text or 'this takes a moment'}.", cls="aw-quiet")
        failure = self.bench.last_failure(*OPERATIONS)
        if failure is not None:
            return failure_card(failure)
        if obstacle := no_base(snapshot):
            return obstacle
        if snapshot.slot is not None:
            return el("p", _held(snapshot.slot), cls="aw-quiet")
        if blocked:
            return el("p", blocked, cls="aw-quiet")
        left = self.bench.outcome("end-hotswap")
        proof = slot_view.left(left) if left is not None else None
        return el("div", proof, slot_view.width(snapshot, ticked))


def _held(slot: rs.SlotStatus) -> str:
    count = len(slot.adapters)
    who = f"{count} adapters take turns" if count > 1 else f"{slot.adapters[0]} is alone"
    return (
        f"{who} in a slot of rank {slot.rank}. Training, blending and loading wait until you "
        "leave it."
    )
