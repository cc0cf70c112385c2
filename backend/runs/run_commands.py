"""The command lines that repeat a run."""

from backend.requests import LoadModel
from backend.requests.command_line import command_of, command_of_file
from backend.results import RunCommands
from backend.runs import adjustments
from backend.runs.run_store import Run
from backend.settings import Settings


def commands_of(run: Run, settings: Settings, *, free: str) -> RunCommands:
    """Return the commands; `free` is the run's name, or another one if an adapter has that name."""
    train = run.request.train
    notes = [_about_changes(run), _about_data(run)]
    if free != train.name:
        notes.append(
            f"An adapter called {train.name} already exists here, so this one is called {free}. "
            "To use the request file, rename the existing adapter first."
        )
    return RunCommands(
        base=command_of(_base_of(run), settings, always=["source"]),
        fields=command_of(train.model_copy(update={"name": free}), settings),
        file=command_of_file(run.folder / "request.json", settings),
        note=" ".join(filter(None, notes)),
    )


def _about_changes(run: Run) -> str:
    """Return what the commands leave out, since they repeat the run as first requested."""
    changed = any(each.changes_rate for each in adjustments.read(run.folder))
    if not changed and not run.status().extra_epochs:
        return ""
    what = "changed during training" if changed else "extended after its end"
    return (
        f"This run was {what}. The commands repeat it as first requested. Its plain PEFT script "
        "includes the later changes."
    )


def _about_data(run: Run) -> str:
    """Return a warning if the run went on with other data: nothing repeats that."""
    status = run.status()
    if not status.data or not status.data.changes:
        return ""
    return (
        "The data of this run changed before its end. The commands train on the data as it is now "
        "from the start, so they give another adapter."
    )


def _base_of(run: Run) -> LoadModel:
    """Return the request that loads the run's base as it was."""
    status, source = run.status(), run.request.base_source
    stored = {"precision": status.stored_precision} if status.stored_precision else {}
    if status.quantization != "none":
        stored["quantization"] = status.quantization
    if run.request.base is not None:
        stored["chat_template"] = run.request.base.chat_template
    return LoadModel(source=source, **stored)
