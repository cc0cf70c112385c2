"""Several processes for one run: their number, and a launch command for other machines.

The page itself can start a run's processes on this machine. For several machines, or to run
independently of the app, it writes the run's folder and shows the command to type.
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
            self.line = safe_view(NOTHING, label="Number of processes")
            with gr.Row(elem_classes="aw-fields"):
                form.add("processes", min_width=150, elem_id="train-processes")
                self.machines = gr.Number(
                    1,
                    label="Machines",
                    info="Number of machines. The processes are divided evenly among them.",
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
        """Write the folder of the run in the form, and show how to launch it."""
        try:
            launch = self.handle.service.prepare_launch(
                self._request_from(values), _whole(machines), caller=self.handle.caller
            )
        except errors.WorkbenchError as error:
            return failure_card(explain(error)), gr.update(visible=False)
        return how_to_launch(launch), gr.update(value=launch.command, visible=True)


def room(base: rs.ModelFacts | None) -> Node:
    """Return how many processes this machine can run, and what they need."""
    if base is None:
        sentence = "Load a base model to see how many processes this machine can run."
        return el("p", sentence, cls="aw-quiet")
    kind = "core" if base.device == "cpu" else "GPU"
    have = f"This machine has {units.plural(base.places, kind)}"
    more = (
        f", so the page can start up to {units.count(base.places)} processes"
        if base.places > 1
        else ""
    )
    return el(
        "p",
        f"{have}{more}. The processes share the batches of each step, so Accumulation must be "
        "a multiple of their number. The result is the same as with one process. Each process "
        "holds the base in memory.",
        cls="aw-quiet",
    )


def how_to_launch(launch: rs.Launch) -> Node:
    """Explain where to type the command and what happens next."""
    where = (
        "Type this on this machine."
        if launch.machines == 1
        else f"Type this on each of the {launch.machines} machines, with the address of one of "
        "them for FIRST_MACHINE. All need this app and the workspace under the same paths, so the "
        "workspace must be on a shared disk."
    )
    return el(
        "div",
        el("p", el("strong", "The run is waiting to be launched. "), where),
        el(
            "p",
            "Once it has started, it appears here and in Runs, with a Stop button.",
            cls="aw-quiet",
        ),
        cls="aw-note wait",
    )


def waiting_stage(run: rs.RunSummary, launch: rs.Launch | None) -> Node:
    """Show a run that is waiting to be launched, and its command."""
    where = "on this machine" if launch is None or launch.machines == 1 else "on every machine"
    return el(
        "div",
        el("div", f"{run.name}: waiting to be launched", cls="aw-card-title"),
        el("p", f"It starts when its command is run {where}."),
        folded("Launch command", launch.command) if launch else None,
        el("div", button("Discard", "discard", run.id), cls="aw-actions"),
        cls="aw-note wait",
    )


def launch_of(handle: ServiceHandle, run: rs.RunSummary) -> rs.Launch | None:
    """Return how a waiting run is launched; None if its folder does not say."""
    if not is_waiting(run):
        return None
    try:
        return handle.service.launch_of(run.id)
    except errors.NotFound:
        return None


def is_waiting(run: rs.RunSummary) -> bool:
    """Return whether a run is waiting to be launched."""
    return run.launched and run.state == "queued"


def discard(handle: ServiceHandle, run_id: str) -> None:
    """Discard a run that is waiting to be launched; shows an error message on failure."""
    try:
        handle.service.discard(run_id)
    except errors.WorkbenchError as error:
        refuse("Cannot discard", error)


def _whole(value: Any) -> int:
    """Return the number of machines as an int; raises InvalidRequest if it is not one."""
    if not isinstance(value, int | float) or value < 1 or value != int(value):
        raise errors.InvalidRequest(
            f"Machines must be a whole number of at least 1, got {value}.", cure="Try 1."
        )
    return int(value)
