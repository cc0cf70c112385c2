"""The Train tab: data, method, settings, the check before the start, the live run."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from backend import METHODS, Event, errors, method_of
from backend import requests as rq
from backend import results as rs
from ui.charts.loss_chart import chart_value, loss_chart
from ui.components import data_sets
from ui.components.event_options import QUIET, hidden_key
from ui.components.feedback import explain, failure_card, refuse
from ui.components.forms import Form
from ui.components.safe_view import Node, clicked, el, safe_view
from ui.components.saved_form import FormKeeper
from ui.components.service_handle import ServiceHandle
from ui.train import base_fields, data_question, proposed_fields, readiness, run_again, run_progress
from ui.train.adjust_panel import AdjustPanel
from ui.train.data.data_picker import CHECK_SECONDS, DataPicker, data_line
from ui.train.launch_panel import LaunchPanel, discard, is_waiting, room
from ui.train.memory_card import load_smaller, with_changes
from ui.train.readiness import Check

BASIC = ("adapter.rank", "epochs", "learning_rate")
DEBOUNCE_SECONDS = 0.4
DEFAULT_METHOD = next(iter(METHODS))
NOTHING: Node = el("div")


class TrainTab:
    """Builds the tab and handles its events."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.form = Form(rq.Train)
        self.check = gr.State(Check())
        self.dismissed = gr.State([])
        self.check_key = hidden_key()
        self.suggested = gr.State("")
        self.held = gr.State(proposed_fields.FIRST)
        with gr.Row(elem_classes="aw-split"):
            with gr.Column(scale=5, min_width=300, elem_classes="aw-column"):
                gr.Markdown("## 1 Data", elem_classes="aw-head")
                self.picker = DataPicker(handle, self.form)
                self._build_method()
                self._build_settings()
                self.launch = LaunchPanel(handle, self.form)
                self.keeper = FormKeeper(handle, self.form, self.method)
            with gr.Column(scale=6, min_width=300, elem_classes="aw-column"):
                self._build_start()
                self._build_run()

    # -- layout ----------------------------------------------------------------------------------

    def _build_method(self) -> None:
        gr.Markdown("## 2 Method", elem_classes="aw-head")
        self.method = gr.Radio(
            [(f"{method.title}: {method.summary}", method.id) for method in METHODS.values()],
            value=DEFAULT_METHOD,
            label="Method",
            show_label=False,
            elem_classes="aw-choices",
            elem_id="train-method",
        )

    def _build_settings(self) -> None:
        gr.Markdown("## 3 Settings", elem_classes="aw-head")
        with gr.Row(elem_classes="aw-fields"):
            self.name = self.form.add("name", min_width=150, elem_id="train-name")
            for path in BASIC:
                place = {"min_width": 150, "elem_id": f"train-{path.rsplit('.')[-1]}"}
                self.form.add(path, **place, **self._special(path))
        self.hidden = [*BASIC, "name", "data", "placeholders", "processes"]
        with (
            gr.Accordion(
                self._advanced_label(0), open=False, elem_id="train-advanced"
            ) as self.advanced,
            gr.Row(elem_classes="aw-fields"),
        ):
            for path in self._advanced_fields():
                if path == "held_out":
                    self.picker.add_held_out()
                else:
                    self.form.add(path, min_width=150, **self._special(path))

    def _advanced_fields(self) -> list[str]:
        of_method = {"adapter.method", "adapter.use_rslora", "adapter.use_dora"}
        paths = [
            *(f"adapter.{name}" for name in rq.Lora.model_fields),
            *(name for name in rq.Train.model_fields if name not in ("adapter", "columns")),
        ]
        return [path for path in paths if path not in of_method and path not in self.hidden]

    def _special(self, path: str) -> dict[str, Any]:
        if path == "learning_rate":
            return {"value": proposed_fields.FIRST[path]}
        return base_fields.FIRST.get(path, {})

    def _advanced_label(self, changed: int) -> str:
        count = len(self._advanced_fields())
        state = "all as proposed" if not changed else f"{changed} changed"
        return f"Advanced ({count}, {state})"

    def _build_start(self) -> None:
        with gr.Column(elem_classes=["aw-column", "aw-start"]):  # stays in view
            gr.Markdown("## 4 Before you start", elem_classes="aw-head")
            self.card = safe_view(NOTHING, label="Check before the start", elem_classes="aw-card")
            self.go = gr.Button(
                "Train", variant="primary", interactive=False, elem_id="train-start"
            )

    def _build_run(self) -> None:
        gr.Markdown("## 5 The run", elem_classes="aw-head")
        self.chart = loss_chart(
            self.handle.service,
            elem_id="train-chart",
            empty="The loss curve appears here once a run has started.",
        )
        self.stage = safe_view(
            run_progress.stage(None, None, None), label="The run", elem_id="train-run"
        )
        self.adjust = AdjustPanel(self.handle)

    # -- wiring ----------------------------------------------------------------------------------

    @property
    def inputs(self) -> dict[str, Any]:
        """The components that define what would be trained."""
        return {**self.form.inputs, "method": self.method}

    @property
    def restored(self) -> list[Any]:
        """The components that a reload may fill."""
        return [*self.inputs.values(), self.suggested]

    @property
    def watched(self) -> dict[str, Any]:
        """This browser tab's own inputs of `show`."""
        return {"check": self.check, "dismissed": self.dismissed}

    @property
    def followed(self) -> list[Any]:
        """The components that `follow` draws."""
        return [self.chart, self.stage]

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` draws."""
        return [
            self.card, self.go, self.check_key, *self.followed,
            *base_fields.drawn(self.form), *self.adjust.drawn, self.launch.line,
        ]  # fmt: skip

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the page is redrawn."""
        rate = self.form.components["learning_rate"]
        proposed = proposed_fields.components(self.form)
        checked = [self.check, self.card, self.go, self.picker.line, self.advanced, self.name,
                   self.suggested, *proposed, self.held, self.keeper.state]  # fmt: skip
        suggestions = {"suggested": self.suggested, "held": self.held}
        checking = gr.on(
            [*(each.change for each in self.inputs.values()), self.check_key.change],
            self.check_settings,
            inputs_kwargs={**self.inputs, **suggestions},
            outputs=checked,
            trigger_mode="always_last",
            **QUIET,
        )
        checking = self.picker.connect_findings(checking, self.check)
        self.picker.data.change(
            self.suggest_name,
            [self.picker.data, self.name, self.suggested],
            [self.name, self.suggested],
            **QUIET,
        )
        self.picker.data.change(
            proposed_fields.start_again,
            [self.held, *proposed[1:]],
            [*proposed[1:], self.held],
            **QUIET,
        )
        drop_bad_rows = self.form.components["drop_bad_rows"]
        self.picker.connect(self.inputs, self.request, drop_bad_rows, self.check_key)
        started = self.go.click(
            self.start,
            inputs_kwargs=self.inputs,
            outputs=[self.check, self.card, self.dismissed],
            **QUIET,
        )
        mended = self.card.click(
            self.take_offer,
            None,
            [self.name, rate, drop_bad_rows, self.picker.preview, self.check_key],
            **QUIET,
        )
        fitted = list(self.form.components.values())
        self.card.click(self.use_change, inputs_kwargs=self.inputs, outputs=fitted, **QUIET)
        acted = self.stage.click(
            self.act_on_run,
            self.dismissed,
            [self.dismissed, self.method, *self.form.components.values()],
            **QUIET,
        )
        written = self.launch.connect(self.inputs, self.request)
        # A redraw that started before a check was done may arrive after it and show the old state.
        return [checking, started, mended, acted, written, *self.adjust.connect()]

    # -- settings --------------------------------------------------------------------------------

    def request(self, values: Mapping[str, Any]) -> rq.Train:
        """Build the request that the form describes; raises InvalidRequest."""
        data = self.form.read(values)
        data["learning_rate"] = data["learning_rate"] or None  # an emptied gr.Number is 0
        preset = METHODS[values["method"]].preset.model_dump(exclude_unset=True)
        return rq.Train(**{**data, "adapter": {**preset, **data["adapter"]}})

    def check_settings(
        self, suggested: str, held: proposed_fields.Held, **values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Check the settings with the base and the data, and show the result."""
        time.sleep(DEBOUNCE_SECONDS)
        name = str(values["name"] or "").strip()
        free = self.handle.free_name(name)
        renamed = (gr.skip(), gr.skip())  # keep what the user types meanwhile
        if name == suggested and free != name:  # a suggested name: take the next free one
            values, name, renamed = {**values, "name": free}, free, (free, free)
            suggested = free
        base = self.handle.service.snapshot().base
        moved = proposed_fields.moved(values, held, proposed_fields.of_base(base))
        values, held = {**values, **moved}, {**held, **moved}
        for check in self._checks(Check(name=name, free_name=free), values):
            suits = proposed_fields.of_report(check.report)
            later = proposed_fields.moved(values, held, suits)
            moved, known = {**moved, **later}, {**held, **later}
            kept = self.keeper.to_keep({**values, **later}, {"name": suggested, **known})
            fields = (*proposed_fields.updates(moved), known if moved else gr.skip())
            yield *self._checked(check, values, held), *renamed, *fields, kept

    def restore(self, kept: Any) -> dict[Any, Any]:
        """Fill the form from browser storage; without a stored name, suggest one from the data."""
        shown = self.keeper.restore(kept)
        if self.name in shown:
            return {**shown, self.suggested: ""}
        source = str(shown.get(self.picker.data, self.picker.data.value) or "")
        name = self.handle.free_name(data_sets.suggested_name(source))
        return {**shown, self.name: name, self.suggested: name}

    def _checks(self, check: Check, values: Mapping[str, Any]) -> Iterator[Check]:
        """Yield what is known at once, then the result of the engine's check."""
        try:
            train = self.request(values)
            snapshot = self.handle.service.snapshot()
            if snapshot.base is None or snapshot.job is not None:
                yield check.model_copy(update={"waiting": True})
                return
            yield check.model_copy(update={"checking": True})
            check = self.picker.hub.looked_up(check, train)
            if check.undownloaded:
                yield check
                return
            check = check.model_copy(update={"look": self.picker.first_look(train)})
            waits = self.picker.wait_for_all(check, train)
            if waits is not None:
                yield waits
                return
            report = self.handle.start(rq.Preflight(train=train)).result(timeout=CHECK_SECONDS)
            yield check.model_copy(update={"report": report})
        except (errors.WorkbenchError, TimeoutError) as error:
            yield check.model_copy(update={"failure": explain(error)})

    def _checked(
        self, check: Check, values: Mapping[str, Any], held: proposed_fields.Held
    ) -> tuple[Any, ...]:
        snapshot = self.handle.service.snapshot()
        ready = readiness.readiness(snapshot, check)
        advanced = set(self._advanced_fields())
        chosen = proposed_fields.chosen(self.form.changed(values), values, held)
        changed = sum(1 for path in chosen if path in advanced)
        return (
            check,
            ready.card,
            gr.update(value=ready.label, interactive=ready.can_start),
            data_line(check, str(values["data"])),
            gr.update(label=self._advanced_label(changed)),
        )

    def suggest_name(self, source: str, name: str, suggested: str) -> tuple[Any, str]:
        """Suggest a name from the data until the user writes one."""
        if name and name != suggested:
            return gr.skip(), suggested
        free = self.handle.free_name(data_sets.suggested_name(source or ""))
        return free, free

    def take_offer(self, event: gr.EventData) -> dict[Any, Any]:
        """Apply a fix from the card: a free name, the usual rate, a smaller base, fewer rows."""
        act, arg = clicked(event)
        if act == "rename":
            return {self.name: arg}
        if act == "rate":
            return {self.form.components["learning_rate"]: float(arg)}
        if act == "drop":
            dropped = self.form.components["drop_bad_rows"]
            return {dropped: True, self.picker.preview: gr.update(visible=False)}
        if act == "smaller":
            load_smaller(self.handle, arg)
        if act == "recheck":
            self.handle.forget_failure("prepare-data")
            return {self.check_key: f"again at {time.time()}"}
        return {self.name: gr.skip()}

    def use_change(self, event: gr.EventData, **values: Any) -> Any:
        """Apply the change of settings that makes the run fit into memory."""
        act, change = clicked(event)
        if act != "fit":
            return {self.name: gr.skip()}
        return self.form.show(with_changes(self.request(values), json.loads(change)))

    # -- the run ---------------------------------------------------------------------------------

    def start(self, **values: Any) -> tuple[Any, Any, Any]:
        """Start the run, or queue it if another one is training; returns at once."""
        try:
            train = self.request(values)
            if readiness.is_training(self.handle.service.snapshot()):
                self.handle.enqueue(train)
            else:
                self.handle.start(train)
        except errors.WorkbenchError as error:
            check = Check(name=str(values["name"] or ""), failure=explain(error))
            return check, failure_card(explain(error)), gr.skip()
        return gr.skip(), gr.skip(), []

    def act_on_run(self, dismissed: list[str], event: gr.EventData) -> dict[Any, Any]:
        """Handle the buttons of a run: resume, discard, retry, or refill the form."""
        act, run_id = clicked(event)
        if act in data_question.ACTS:
            data_question.decide(self.handle, act, run_id)
            return {self.dismissed: gr.skip()}
        if act == "discard":
            discard(self.handle, run_id)
        if act == "another":
            name = run_again.other_name(self.handle, run_id)
            return {self.dismissed: [*dismissed, run_id], self.name: name}
        if act == "retry":
            return {self.dismissed: [*dismissed, run_id], **self._retry(run_id)}
        if act in ("again", "slower", "best"):
            return {self.dismissed: [*dismissed, run_id], **self.refill(run_id, act)}
        return {self.dismissed: gr.skip()}

    def _retry(self, run_id: str) -> dict[Any, Any]:
        """Restart an out-of-memory run with settings that fit."""
        train = run_again.fitting(self.handle, run_id)
        try:
            self.handle.start(train)
        except errors.WorkbenchError as error:
            refuse("Cannot retry", error)
        return self._shown(train)

    def refill(self, run_id: str, act: str = "again") -> dict[Any, Any]:
        """Return form values from a run's settings, with a free name."""
        return self._shown(run_again.settings(self.handle, run_id, act))

    def _shown(self, train: rq.Train) -> dict[Any, Any]:
        return {self.method: method_of(train.adapter).id, **self.form.show(train)}

    def follow(self, snapshot: rs.Snapshot, dismissed: list[str]) -> dict[Any, Any]:
        """Draw the chart and the run."""
        run = self.handle.on_stage(snapshot, dismissed)
        stage = run_progress.shown(self.handle, snapshot, run, self._events(run))
        return {self.chart: self._chart(run), self.stage: stage}

    def show(self, snapshot: rs.Snapshot, check: Check, dismissed: list[str]) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session."""
        run = self.handle.on_stage(snapshot, dismissed)
        ready = readiness.readiness(snapshot, check)
        return {
            self.card: ready.card,
            self.go: gr.update(
                value=ready.label,
                interactive=ready.can_start,
                variant="secondary" if run_progress.offers_next_step(run) else "primary",
            ),
            self.check_key: readiness.check_key(snapshot, check),
            **base_fields.show(self.form, snapshot),
            self.launch.line: room(snapshot.base),
            **self.follow(snapshot, dismissed),
            **self.adjust.show(snapshot, run, self._events(run)),
        }

    def _events(self, run: rs.RunSummary | None) -> list[Event]:
        return self.handle.service.events(run.id) if run else []

    def _chart(self, run: rs.RunSummary | None) -> dict[str, Any]:
        if run is None or is_waiting(run):
            return chart_value(None)
        return chart_value(run.id, run.colour, run.state in ("queued", "running"), run.step)
