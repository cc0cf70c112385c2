"""The export of a run as a self-contained folder: request, events, adapter and script.

The script needs the examples as the run saw them, so they are tokenised here again. That needs only
the base's tokenizer, whichever base is loaded.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from backend.engine.core.job_control import Control
from backend.engine.data import dataset, tokenization
from backend.engine.export.export_readme import write_readme
from backend.engine.models import model_folder
from backend.errors import DataError, ModelError, NotFound, Unsupported
from backend.files.atomic_files import disk_error, new_folder
from backend.library import Library
from backend.requests import ExportRun, Train
from backend.results import ExportedRun, ModelFacts
from backend.runs.plain_script import EXAMPLES, SCRIPT, START, script_of
from backend.runs.run_store import Run
from backend.settings import Settings

RECORDS = ("events.jsonl", "output.log", "note.txt", "status.json")


def export(
    request: ExportRun,
    control: Control,
    *,
    run: Run,
    library: Library,
    base: ModelFacts | None,
) -> ExportedRun:
    """Write a run to a new folder, completely or not at all."""
    destination = Path(request.destination).expanduser().absolute()
    notes: list[str] = []
    with new_folder(destination) as folder:
        _records(run, folder)
        _adapter(run, library, folder, notes)
        control.progress("Writing the examples as the model sees them", force=True)
        _script(run, library, base, folder, control, notes)
        write_readme(run, folder, notes)
        control.check_stop()
    files = sorted(path for path in destination.rglob("*") if path.is_file())
    return ExportedRun(
        path=str(destination),
        files=[str(path.relative_to(destination)) for path in files],
        bytes=sum(path.stat().st_size for path in files),
        notes=notes,
    )


def _records(run: Run, folder: Path) -> None:
    """Copy the run's records; its request becomes a file for `python -m backend run`."""
    asked = {"request": "train", **run.request.dated.model_dump(mode="json")}
    (folder / "request.json").write_text(json.dumps(asked, indent=1), encoding="utf-8")
    shutil.copyfile(run.folder / "request.json", folder / "run.json")
    for name in RECORDS:
        if (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, folder / name)


def _adapter(run: Run, library: Library, folder: Path, notes: list[str]) -> None:
    info = library.by_id(run.request.adapter_id)
    if info is None:
        notes.append("The run's adapter is not in the library, so this folder has no adapter.")
        return
    shutil.copytree(library.folder(info.id), folder / "adapter")


def _script(
    run: Run,
    library: Library,
    base: ModelFacts | None,
    folder: Path,
    control: Control,
    notes: list[str],
) -> None:
    """Write script and examples; a run that a script cannot repeat is exported without them."""
    train = run.request.dated
    try:
        place = _base_folder(run, base, control)
        (folder / SCRIPT).write_text(script_of(run, library, str(place)), encoding="utf-8")
        if train.start_from is not None:
            start = library.get(train.start_from)
            shutil.copytree(library.folder(start.id), folder / START)
        template = run.request.base.chat_template if run.request.base else "own"
        found = examples(train, place, template)
        _require_same(run, found)
        write_examples(found, folder / EXAMPLES)
    except (DataError, ModelError, NotFound, Unsupported) as error:
        notes.append(f"This folder has no script: {error}")
        for name in (SCRIPT, EXAMPLES):
            (folder / name).unlink(missing_ok=True)


def examples(train: Train, base: Path, template: str = "own") -> tokenization.Documents:
    """Return a run's training examples, as its base sees them."""
    context = model_folder.context_length(base)
    longest = min(train.longest, context) if context else train.longest
    source = dataset.of_run(train)
    tokenizer = model_folder.read_tokenizer(base, template)
    return tokenization.tokenise(source, tokenizer, max_length=longest).train


def _require_same(run: Run, found: tokenization.Documents) -> None:
    """Raise DataError if the examples are not those of the run: the script would repeat another."""
    known = run.status().examples
    if known and known != found.digest():
        raise DataError("The data, or how the base reads it, has changed since the run.")


def write_examples(documents: Sequence[tokenization.Tokens], file: Path) -> None:
    """Write one example per line: its tokens, and which of them have a loss."""
    try:
        with file.open("w", encoding="utf-8") as lines:
            for each in documents:
                row = {"ids": each.ids.tolist(), "learned": each.learned.astype(int).tolist()}
                lines.write(json.dumps(row, separators=(",", ":")) + "\n")
    except OSError as error:
        raise disk_error(error, file) from error


def _base_folder(run: Run, base: ModelFacts | None, control: Control) -> Path:
    if base is not None and base.fingerprint == run.request.base_fingerprint:
        return Path(base.path)
    models_dir = Settings(workspace=run.folder.parent.parent).models_dir
    return model_folder.find(run.request.base_source, None, control, models_dir)
