"""Whether a run can start: the card above the Train button, and the button's label."""

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from backend import results as rs
from backend import usual_rate
from ui.components import units
from ui.components.blockers import held, no_base, under_way, wait
from ui.components.feedback import Failure, failure_card, mend_button
from ui.components.safe_view import Node, button, el
from ui.components.session_facts import as_named
from ui.train.data.data_report import counted, drop_button, read_as
from ui.train.memory_card import memory_card


class Check(BaseModel):
    """What is known about the settings in the form. One per browser tab."""

    model_config = ConfigDict(frozen=True)

    name: str = ""
    free_name: str = ""
    failure: Failure | None = None
    report: rs.PreflightReport | None = None
    checking: bool = False
    waiting: bool = False
    look: rs.DataPreview | None = None
    preparing: bool = False
    """Whether large data is being read in the background."""
    hub: rs.HubDescription | None = None
    """The data set of the Hub, if it is one."""
    hub_failure: Failure | None = None
    downloading: bool = False
    unprepared: bool = False
    """Whether reading failed; it is repeated only on request."""

    @property
    def undownloaded(self) -> bool:
        """Whether the data set has to be downloaded from the Hub first."""
        return self.hub is not None and not self.hub.ready


class Readiness(NamedTuple):
    """The card before the start button, and the button."""

    card: Node
    label: str
    can_start: bool


def readiness(snapshot: rs.Snapshot, check: Check) -> Readiness:
    """Return whether the run can start, and if not, the reason and a fix."""
    label = f"Train {units.shorten(check.name)}" if check.name else "Train"
    report = check.report
    if report is not None and report.ready and report.seconds:
        label += f", {units.about(report.seconds)}"
    if check.name and check.failure is None and is_training(snapshot):
        return _its_turn(snapshot, check)
    blocked = _blocked(snapshot, check)
    if blocked is not None:
        offers = report is not None and (report.smallest_change or report.smaller_base)
        card = memory_card(report if offers else None)
        return Readiness(el("div", blocked, card), label, False)
    assert report is not None
    return Readiness(el("div", _ready_card(report), memory_card(report)), label, True)


def is_training(snapshot: rs.Snapshot) -> bool:
    """Return whether a run is training, so that another one can be queued."""
    job = snapshot.job
    return job is not None and job.run_id is not None and snapshot.base is not None


def _its_turn(snapshot: rs.Snapshot, check: Check) -> Readiness:
    """Offer to queue the run after the one that is training."""
    assert snapshot.job is not None
    label = f"Add {check.name} to the queue"
    names = [each.name for each in snapshot.queue]
    if check.name in names:
        said = f"{check.name} is number {names.index(check.name) + 1} in the queue."
        return Readiness(wait(f"{said} The Runs tab lists the queue."), label, False)
    if check.free_name not in ("", check.name):
        return Readiness(_name_taken(snapshot, check), label, False)
    after = f", after {units.plural(len(names), 'run')} already in the queue" if names else ""
    sentence = f"{check.name} will start when it is done{after}."
    return Readiness(wait(f"{under_way(snapshot.job)}. {sentence}"), label, True)


def check_key(snapshot: rs.Snapshot, check: Check) -> str:
    """Return a key that changes whenever the settings have to be checked again."""
    base = snapshot.base.loaded_as if snapshot.base else ""
    names = ",".join([*(a.name for a in snapshot.adapters), *(q.name for q in snapshot.queue)])
    held = "busy" if check.waiting and snapshot.job is not None else "free"
    under_way = {job.operation for job in snapshot.side_jobs}
    reading = bool(under_way & {"prepare-data", "download-hub-data"})
    data = ("reading" if reading else "read") if check.preparing or check.downloading else ""
    taken = [run.id for run in snapshot.runs if run.state in ("queued", "running")]  # their names
    return f"{base}|{names}|{held}|{data}|{','.join(taken)}"


def data_line(check: Check, summary: str) -> str:
    """Describe the chosen data in one line."""
    stats = check.report.stats if check.report else None
    if stats is None:
        look = check.look
        if look is None or not look.shape:
            return summary
        rows = counted(look)
        return f"{rows[:1].upper()}{rows[1:]}. {read_as(look.shape, look.shape_reason)}"
    rows = units.plural(stats.rows, "row")
    if stats.held_out_rows and not summary:  # a bundled set is shown as one number
        own = units.plural(stats.rows - stats.held_out_rows, "row")
        rows = f"{own} and {units.count(stats.held_out_rows)} of the held-out data"
    parts = [f"{rows}, {units.count(stats.examples)} to train on"]
    if stats.held_out:
        parts.append(f"{units.count(stats.held_out)} held out")
    parts.append(f"longest {units.plural(stats.longest, 'token')}")
    if stats.cut:
        parts.append(f"{units.count(stats.cut)} cut")
    if stats.dropped:
        parts.append(f"{units.count(stats.dropped)} dropped")
    if stats.bad:
        parts.append(f"{units.count(stats.bad)} bad and left out")
    if stats.overlap:
        parts.append(f"{units.count(stats.overlap)} left out because they are also held out")
    said = ", ".join(parts) + "."
    return f"{said} {summary or read_as(stats.shape, stats.shape_reason)}"


def notes(check: Check) -> tuple[str, ...]:
    """Return how the data were read: the encoding, what is held out, what is not used."""
    stats = check.report.stats if check.report else None
    if stats is not None:
        return stats.notes
    return check.look.notes if check.look else ()


def _blocked(snapshot: rs.Snapshot, check: Check) -> Node | None:
    if check.failure is not None and check.unprepared:
        mend = mend_button("Check the data again", "recheck")
        return failure_card(check.failure, mend, "The data has not been checked")
    if check.failure is not None:
        return _problems([rs.Problem(what=check.failure.what, cure=check.failure.cure)])
    if check.name and check.free_name not in ("", check.name):
        return _name_taken(snapshot, check)
    if snapshot.job is not None and snapshot.base is None:
        return wait("The base model is loading. The settings will be checked after that.")
    if obstacle := no_base(snapshot) or held(snapshot):
        return obstacle
    if snapshot.job is not None:
        return wait(f"{under_way(snapshot.job)}. Wait for it, or stop it at the top.")
    if check.hub is not None and check.undownloaded:
        return _undownloaded(check.hub, check)
    if check.preparing:
        rows = counted(check.look) if check.look else "the rows"
        return wait(f"Reading and checking {rows} once. Progress is shown at the top.")
    if check.checking or check.report is None:
        return wait("Checking these settings with the base and the data.")
    return None if check.report.ready else _problems(check.report.problems)


def _undownloaded(hub: rs.HubDescription, check: Check) -> Node:
    """Say that a data set has to be downloaded, or why it cannot be."""
    if hub.problem is not None:
        return _problems([hub.problem])
    if check.downloading:
        return wait("Downloading the data set. Progress is shown at the top.")
    if check.hub_failure is not None:
        return failure_card(check.hub_failure, title="The data set is not on this machine yet")
    need, free = units.size(hub.needed_bytes), units.size(hub.free_bytes)
    return wait(
        "The data set is on the Hub and not on this machine yet. Press Download, below the data: "
        f"it needs about {need} of disk space, and {free} are free."
    )


def _ready_card(report: rs.PreflightReport) -> Node:
    share = units.part_of_model(report.trainable_parameters, report.total_parameters)
    time = f", {units.about(report.seconds)}" if report.seconds else ""
    if time and report.seconds_from:
        time += f" ({report.seconds_from})"
    memory = (
        ""  # shown in the memory card below
        if report.memory_parts
        else f", {units.size(report.memory_bytes)} of "
        f"{units.size(report.memory_available_bytes)} free memory"
    )
    sentence = (
        f"{units.plural(len(report.matched_modules), 'layer')} matched, {share} to train, "
        f"{units.plural(report.steps, 'step')}{time}{memory}."
    )
    notes = report.notes
    head = "Ready, with a warning." if report.warnings else "Ready."
    usual = usual_rate(report.total_parameters)
    listed = el("ul", *(el("li", note) for note in notes), cls="aw-quiet aw-notes")
    return el(
        "div",
        *(_warning(warning) for warning in report.warnings),
        button(f"Use {usual:g}", "rate", f"{usual:g}") if report.warnings else None,
        el("p", el("strong", head), f" {sentence}"),
        listed if notes else None,
        _why(report.proposal),
        el("p", _settings_and_disk(report), cls="aw-quiet"),
        cls="aw-note warn" if report.warnings else "aw-note good",
    )


def _why(proposal: rs.Proposal | None) -> Node | None:
    """Say why the proposed settings suit the base and the examples."""
    if proposal is None:
        return None
    reasons = el("ul", *(el("li", reason) for reason in proposal.why), cls="aw-quiet aw-notes")
    title = "Proposed for this base and these examples"
    return el("div", el("p", title, cls="aw-quiet"), reasons)


def _settings_and_disk(report: rs.PreflightReport) -> str:
    """Return how many settings were changed, and how much the run writes to disk."""
    changed = report.changed_settings
    verb = "differs" if changed == 1 else "differ"
    settings = (
        f"{units.plural(changed, 'setting')} {verb} from what is proposed."
        if changed
        else "All settings are as proposed."
    )
    if not report.disk_bytes:
        return settings
    need, free = units.size(report.disk_bytes), units.size(report.disk_free_bytes)
    return f"{settings} Disk: {need} needed, {free} free."


def _warning(warning: rs.Problem) -> Node:
    return el("p", el("strong", warning.what), el("span", f" {warning.cure}", cls="aw-quiet"))


def _name_taken(snapshot: rs.Snapshot, check: Check) -> Node:
    return el(
        "div",
        el("p", f"There is already an adapter called {as_named(snapshot, check.name)}."),
        mend_button(f"Call it {check.free_name}", "rename", check.free_name),
        cls="aw-note warn",
    )


def _problems(problems: list[rs.Problem]) -> Node:
    items = [
        el("li", problem.what, el("span", f" {problem.cure}", cls="aw-quiet"))
        for problem in problems
    ]
    mend = drop_button() if any(problem.droppable for problem in problems) else None
    head = el("p", el("strong", "Not ready yet."))
    return el("div", head, el("ul", *items), mend, cls="aw-note warn")
