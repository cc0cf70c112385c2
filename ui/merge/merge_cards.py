"""What the Merge tab shows, as trees: the needs of a merge, its progress, its result."""

from collections.abc import Sequence

from backend import errors
from backend import results as rs
from ui.components import units
from ui.components.feedback import evidence
from ui.components.progress_bar import progress
from ui.components.safe_view import Child, Node, button, el

EMPTY = (
    "The merged model appears here: a folder that loads like any base model, without PEFT. "
    "The base and the adapters are not changed."
)


def running(snapshot: rs.Snapshot) -> rs.JobInfo | None:
    """Return the running merge, if there is one."""
    return next((job for job in snapshot.side_jobs if job.operation == "merge"), None)


def merge_label(names: Sequence[str], snapshot: rs.Snapshot) -> str:
    """Return the label of the button."""
    if not names or snapshot.base is None:
        return "Merge"
    return (
        f"Merge {units.shorten(', '.join(names), 40)} into {units.shorten(snapshot.base.name, 30)}"
    )


FULL_PRECISION = "The loaded base is quantised. The merge uses its full-precision weights."


def needs_card(needs: rs.MergeNeeds, base: rs.ModelFacts | None = None) -> Node:
    """Show the disk and memory that a merge needs, and which weights it uses."""
    fits = needs.disk_bytes <= needs.disk_free_bytes
    disk = f"{units.size(needs.disk_bytes)} of {units.size(needs.disk_free_bytes)} free disk"
    memory = f"about {units.size(needs.memory_bytes)} of memory"
    sentence = f" {units.plural(needs.files, 'file')} in {needs.precision}, {disk}, {memory}."
    how = (
        "The weights are read, merged and written one by one, so the whole model is never in "
        "memory. Afterwards answers are compared if memory allows it."
    )
    if base and base.stored_quantized:
        how = (
            f"The files are in {base.stored_quantized}, so the whole model is unpacked in memory, "
            "merged and written. Afterwards answers are compared."
        )
    return el(
        "div",
        el("p", el("strong", "Ready." if fits else "The disk is too full."), sentence),
        el("p", how, cls="aw-quiet"),
        el("p", FULL_PRECISION, cls="aw-quiet") if base and base.quantization != "none" else None,
        cls=f"aw-note {'good' if fits else 'warn'}",
    )


def stage(job: rs.JobInfo | None, merged: rs.Merged | None) -> Node:
    """Show the running merge, or what the last one wrote and how it was verified."""
    if job is not None:
        return el("div", _running(job), cls="aw-stage")
    if merged is None:
        return el("div", el("p", EMPTY, cls="aw-quiet"), cls="aw-stage")
    size = f"{units.size(merged.bytes)} in {units.plural(merged.files, 'weight file')}"
    return el(
        "div",
        el("p", f"Merged: {size}, {merged.precision}.", cls="aw-result"),
        _evidence(merged),
        *(el("p", note, cls="aw-quiet") for note in merged.notes),
        el("p", merged.path, cls="aw-path"),
        el(
            "p",
            f"Took {units.duration(merged.seconds)}. The folder also contains the tokenizer, the "
            "settings and a model card that lists what was merged.",
            cls="aw-quiet",
        ),
        el("div", button("Load it as base", "load", merged.path), cls="aw-actions"),
        cls="aw-stage",
    )


def _evidence(merged: rs.Merged) -> Node:
    if merged.max_difference is None:
        return el("p", f"Partly verified: {merged.verified}.")
    return evidence(f"Verified: {merged.verified}.")


def _running(job: rs.JobInfo) -> Node:
    left = f", {units.duration(job.seconds_left)} left" if job.seconds_left is not None else ""
    doing = (
        "Stopping; partial files will be removed"
        if job.stopping
        else f"{job.text or 'Starting'}{left}"
    )
    return el(
        "div",
        el("p", el("strong", job.title), f" {units.percent(job.fraction or 0)}"),
        progress(job),
        el("p", f"{doing}.", cls="aw-quiet"),
        el(
            "div",
            button("Stop now" if job.stopping else "Cancel", "cancel", str(job.id)),
            el("span", "Cancelling removes all partial files.", cls="aw-quiet"),
            cls="aw-actions",
        ),
    )


def problem(error: errors.WorkbenchError, mend: Child) -> Node:
    cure = el("span", f" {error.cure}", cls="aw-quiet") if error.cure else None
    return el("div", el("p", error.what, cure), mend, cls="aw-note warn")


def just_merged(mend: Child) -> Node:
    """Say that the merged model was just written to the folder, and offer another folder."""
    said = "The merged model was written there (below). Change the folder to create another."
    return el("div", el("p", said), mend, cls="aw-note good")


def warn(sentence: str, mend: Node) -> Node:
    return el("div", el("p", sentence), mend, cls="aw-note warn")
