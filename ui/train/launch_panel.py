"""Several processes for one run: how many, and the command that starts them where the page cannot.

The page itself starts a run's processes on this machine; for several machines, or to keep a run
apart from the app, it writes the run's folder and shows what to type.
"""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from backend import errors
from backend import requests as rq
from backend import results as rs
from ui.components import units
from ui.components.event_options import QUIET
from ui.components.feedback import explain, failure_card, folded, refuse
from ui.components.forms import Form
from ui.components.safe_view import Node, button, el, safe_view
from ui.components.service_handle import ServiceHandle

NOTHING: Node = el("div")


class LaunchPanel:
    """The fold with the number of processes and the launch command."""

    def __init__(self, handle: ServiceHandle, form: Form) -> None:
        self.handle = handle
        demo = handle.service.settings.demo
        with gr.Accordion(
            "Several processes or machines", open=False, visible=not demo, elem_id="train-several"
        ) as self.fold:
            self.line = safe_view(NOTHING, label="Room for processes")
            with gr.Row(elem_classes="aw-fields"):
                form.add("processes", min_width=150, elem_id="train-processes")
                self.machines = gr.Number(
                    1,
                    label="Machines",
                    info="Over how many machines the processes are shared out evenly.",
                    step=1,
                    min_width=150,
                    elem_id="train-machines",
                )
            self.write = gr.Button("Write the launch command", size="sm", elem_classes="aw-auto")
            self.note = safe_view(NOTHING, label="How to launch it", elem_id="launch-note")
            self.command = gr.Textbox(
                label="Launch command",
                lines=3,
                interactive=False,
                visible=False,
                buttons=["copy"],
                elem_id="launch-command",
            )
        handle.keep_for_owner(self.fold, visible=True)

    def connect(
        self, inputs: dict[str, Any], request_from: Callable[[Mapping[str, Any]], rq.Train]
    ) -> Any:
        """Wire the button; `request_from` turns the form's values into a request."""
        self._request_from = request_from
        return self.write.click(
            self.write_command,
            inputs_kwargs={**inputs, "machines": self.machines},
            outputs=[self.note, self.command],
            **QUIET,
        )

    def write_command(self, machines: Any, **values: Any) -> tuple[Node, Any]:
        """Write down the run that the form describes, and show how to launch it."""
        try:
            launch = self.handle.service.prepare_launch(
                self._request_from(values), _whole(machines), caller=self.handle.caller
            )
        except errors.WorkbenchError as error:
            return failure_card(explain(error)), gr.update(visible=False)
        return how_to_launch(launch), gr.update(value=launch.command, visible=True)


def room(base: rs.ModelFacts | None) -> Node:
    """Say how many processes this machine has room for, and what they cost."""
    if base is None:
        return el("p", "Load a base model to see what this machine has room for.", cls="aw-quiet")
    kind = "core" if base.device == "cpu" else "GPU"
    have = f"This machine has {units.plural(base.places, kind)}"
    more = (
        f", so the page can start up to {units.count(base.places)} processes by itself"
        if base.places > 1
        else ""
    )
    return el(
        "p",
        f"{have}{more}. Processes share the packs of each step, so Accumulation must be a multiple "
        "of their number; the result is the same as with one, and each holds the base in memory.",
        cls="aw-quiet",
    )


def how_to_launch(launch: rs.Launch) -> Node:
    """Say where to type the command and what follows."""
    where = (
        "Type this on this machine."
        if launch.machines == 1
        else f"Type this on each of the {launch.machines} machines, with the address of one of "
        "them for FIRST_MACHINE. All need this app and the workspace under the same paths, so the "
        "workspace must lie on a disk that they share."
    )
    return el(
        "div",
        el("p", el("strong", "The run waits to be launched. "), where),
        el(
            "p",
            "As soon as it begins, it shows here and in Runs like any other, with Stop.",
            cls="aw-quiet",
        ),
        cls="aw-note wait",
    )


def waiting_stage(run: rs.RunSummary, launch: rs.Launch | None) -> Node:
    """Show a run that waits for somebody to launch it, and its command."""
    where = "on this machine" if launch is None or launch.machines == 1 else "on every machine"
    return el(
        "div",
        el("div", f"{run.name}: waits to be launched", cls="aw-card-title"),
        el("p", f"It begins when its command is run {where}."),
        folded("Its command", launch.command) if launch else None,
        el("div", button("Discard it", "discard", run.id), cls="aw-actions"),
        cls="aw-note wait",
    )


def launch_of(handle: ServiceHandle, run: rs.RunSummary) -> rs.Launch | None:
    """Return how a waiting run is launched, where its folder tells."""
    if not is_waiting(run):
        return None
    try:
        return handle.service.launch_of(run.id)
    except errors.NotFound:
        return None


def is_waiting(run: rs.RunSummary) -> bool:
    """Tell whether a run waits for somebody to launch it."""
    return run.launched and run.state == "queued"


def discard(handle: ServiceHandle, run_id: str) -> None:
    """Forget a run that waits to be launched; what stands in the way is said in words."""
    try:
        handle.service.discard(run_id)
    except errors.WorkbenchError as error:
        refuse("Cannot discard", error)


def _whole(value: Any) -> int:
    """Return a number of machines; raises InvalidRequest where it is none."""
    if not isinstance(value, int | float) or value < 1 or value != int(value):
        raise errors.InvalidRequest(
            f"Machines must be a whole number of at least 1, got {value}.", cure="Try 1."
        )
    return int(value)
