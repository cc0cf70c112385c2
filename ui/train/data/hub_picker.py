"""A data set of the Hub before its download: its parts to choose from, its size, its first rows."""

import time
from typing import Any

import gradio as gr

from backend import errors, on_hub, read_hub_name
from backend import requests as rq
from backend import results as rs
from ui.components import units
from ui.components.event_options import QUIET
from ui.components.feedback import refuse
from ui.components.safe_view import Node, button, clicked, el, facts, safe_view
from ui.components.service_handle import ServiceHandle
from ui.components.tables import cell, table
from ui.train.readiness import Check

LOOK_SECONDS = 120.0
KNOWN_SECONDS = 600.0
"""For so long a description is used again: a check follows each change of the form."""
MOST_KNOWN = 50
DOWNLOAD = "download-hub-data"
NOTHING: Node = el("div")
TO_DOWNLOAD = "The data set is on the Hub and not on this machine yet."


class HubPicker:
    """The choices and the description of a Hub data set; hidden for other data."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self._known: dict[str, tuple[float, rs.HubDescription]] = {}
        with gr.Column(visible=False, elem_id="train-hub") as self.group:
            with gr.Row(elem_classes="aw-fields"):
                self.configuration = gr.Dropdown(
                    [], label="Configuration", min_width=150, elem_id="train-hub-configuration"
                )
                self.split = gr.Dropdown(
                    [], label="Split to train on", min_width=150, elem_id="train-hub-split"
                )
            self.view = safe_view(NOTHING, label="The data set on the Hub", elem_id="train-hub-set")

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` fills."""
        return [self.group, self.configuration, self.split, self.view]

    def connect(self, data: gr.Dropdown, check_key: gr.Textbox) -> list[Any]:
        """Wire the choices and the button; returns the events that change the data."""
        self.view.click(self.download, None, check_key, **QUIET)
        parts = [data, self.configuration, self.split]
        return [
            self.configuration.input(self.choose_configuration, parts, data, **QUIET),
            self.split.input(self.choose_split, parts, data, **QUIET),
        ]

    def looked_up(self, check: Check, train: rq.Train) -> Check:
        """Add the description of the run's data; of the held-out data where that is missing.

        Raises the errors of looking it up, and of a download that failed.
        """
        found = [self._describe(each) for each in _on_hub(train)]
        shown = next((each for each in found if not each.ready), found[0] if found else None)
        if shown is None or shown.ready:
            return check.model_copy(update={"hub": shown})
        job = self.handle.last(DOWNLOAD, rq.DownloadHubData(data=shown.source))
        failed = self.handle.failure(DOWNLOAD) if job is not None and job.done() else None
        return check.model_copy(
            update={"hub": shown, "hub_failure": failed,
                    "downloading": job is not None and not job.done()}
        )  # fmt: skip

    def require_downloaded(self, train: rq.Train) -> None:
        """Raise NotFound for a data set that would have to be downloaded first."""
        for source in _on_hub(train):
            if not self._describe(source).ready:
                raise errors.NotFound(TO_DOWNLOAD, cure="Press Download below the data first.")

    def show(self, check: Check) -> list[Any]:
        """Draw the choices and the description that the last check found."""
        said = check.hub
        if said is None:
            # While the model is busy, nothing was looked up.
            return [gr.skip() if check.waiting else gr.update(visible=False), *[gr.skip()] * 3]
        return [
            gr.update(visible=True),
            _choice(said.configurations, said.configuration),
            _choice(said.splits, said.split),
            description(said, downloading=check.downloading),
        ]

    def choose_configuration(self, data: str, configuration: str | None, _: str | None) -> str:
        """Name another configuration of the data set; its splits are chosen anew."""
        return str(read_hub_name(data).of(configuration=configuration or ""))

    def choose_split(self, data: str, configuration: str | None, split: str) -> str:
        """Name another split of the data set."""
        return str(read_hub_name(data).of(configuration=configuration or "", split=split))

    def download(self, event: gr.EventData) -> Any:
        """Start the download; the settings are checked again, now and when it is done."""
        act, source = clicked(event)
        if act != "download":
            return gr.skip()
        try:
            self.handle.start(rq.DownloadHubData(data=source))
        except errors.WorkbenchError as error:
            refuse("The download cannot start", error)
            return gr.skip()
        return f"downloading at {time.time()}"

    def _describe(self, source: str) -> rs.HubDescription:
        done = self.handle.outcome(DOWNLOAD)
        known = self._known.get(source)
        if known is not None and time.monotonic() - known[0] < KNOWN_SECONDS:
            fetched = done is not None and done.source == known[1].source
            if known[1].ready or not fetched:
                return known[1]
        job = self.handle.start(rq.DescribeHubData(data=source))
        said: rs.HubDescription = job.result(timeout=LOOK_SECONDS)
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        if said.ready or said.problem is None:  # access or disk space may be there at the next look
            self._known[source] = (time.monotonic(), said)
        return said


def _on_hub(train: rq.Train) -> list[str]:
    return [each for each in (train.data, train.held_out) if each and on_hub(each)]


def _choice(names: tuple[str, ...], chosen: str) -> Any:
    return gr.update(choices=list(names), value=chosen if chosen in names else None)


def description(said: rs.HubDescription, *, downloading: bool = False) -> Node:
    """Describe a data set: licence, size, disk space, first rows, and the button to download it."""
    problem = said.problem
    return el(
        "div",
        facts(_facts(said)),
        *(el("p", note, cls="aw-small") for note in said.notes),
        el("p", problem.what, el("span", f" {problem.cure}", cls="aw-quiet"), cls="aw-note warn")
        if problem
        else None,
        _rows(said),
        None if said.ready or problem or downloading else _download_button(said),
        el("p", "Downloading. Progress and Stop are at the top.") if downloading else None,
        cls="aw-stack",
    )


def _facts(said: rs.HubDescription) -> list[tuple[str, str]]:
    found = [("Data set", said.id), ("Licence", said.license or "not stated")]
    if said.gated:
        found.append(("Access", "gated: its conditions must be accepted on its page"))
    if said.ready:
        return [*found, ("On this machine", "yes")]
    if said.rows is not None:
        held_out = f", {units.count(said.held_out_rows)} held out" if said.held_out_rows else ""
        found.append(("Rows", f"{units.count(said.rows)}{held_out}"))
    if said.files:
        kept = f", {units.size(said.kept_bytes)} already here" if said.kept_bytes else ""
        files = units.plural(said.files, "file")
        found.append(("Download", f"{units.size(said.download_bytes)} in {files}{kept}"))
        about = "about " if said.prepared_is_estimate else ""
        need, free = units.size(said.needed_bytes), units.size(said.free_bytes)
        found.append(("Disk space", f"{about}{need} needed, {free} free"))
    return found


def _rows(said: rs.HubDescription) -> Node | None:
    if not said.first_rows:
        return el("p", said.first_rows_note, cls="aw-quiet") if said.first_rows_note else None
    heads = list(dict.fromkeys(name for row in said.first_rows for name in row))
    body = [el("tr", *(cell(head, row.get(head, "")) for head in heads)) for row in said.first_rows]
    return table("First rows", heads, body)


def _download_button(said: rs.HubDescription) -> Node:
    size = units.size(said.download_bytes)
    label = f"Download {size}"
    if 0 < said.kept_bytes < said.download_bytes:
        label = f"Continue the download: {units.size(said.kept_bytes)} of {size} are here"
    return button(label, "download", said.source, kind="mend")
