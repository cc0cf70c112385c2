"""Importing a workspace that was exported on another machine, whole or not at all.

Everything is unpacked into a staging folder in the workspace, checked and renamed there, and then
moved to its place. Nothing in this workspace is replaced.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from backend.catalogue.packaged_models import PACKAGED_MODELS
from backend.errors import InvalidRequest, ModelError, WorkbenchError
from backend.files.atomic_files import disk_error
from backend.library import SIDECAR, Library, new_adapter_id
from backend.permissions import Caller, check_caller
from backend.requests import Train
from backend.results import AdapterInfo, ImportedWorkspace
from backend.runs import training_queue
from backend.runs.run_store import Runs
from backend.runs.training_queue import TrainingQueue, Waiting
from backend.settings import Settings
from backend.workspace import staged_adapters, staged_runs
from backend.workspace.archive import MOST_TEXT_BYTES, QUEUE, SESSION, Entry, Progress, opened
from backend.workspace.moves import Moves, staging
from backend.workspace.session_recipe import Recipe
from backend.workspace.staged_adapters import KnownAdapters

Found = tuple[staged_adapters.Staged, AdapterInfo | None]
FoundRun = tuple[staged_runs.Staged, str | None]


class Import:
    """One import into a workspace; `run` does it."""

    def __init__(
        self,
        settings: Settings,
        library: Library,
        runs: Runs,
        queue: TrainingQueue,
        caller: Caller = "local",
    ) -> None:
        self.settings = settings
        self.library = library
        self.runs = runs
        self.queue = queue
        self.caller = caller
        self.entries: dict[str, Entry] = {}
        self.taken: set[str] = set()
        """Reserved adapter names, including those of this import."""
        self.adapter_ids: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.run_ids: dict[str, str] = {}
        self.adapters: list[str] = []
        self.run_names: list[str] = []
        self.there: list[str] = []
        self.renamed: list[tuple[str, str]] = []
        self.left_out: list[str] = []
        self.missing: list[str] = []

    def run(
        self,
        source: Path,
        *,
        lock: AbstractContextManager[object],
        reserved: Callable[[], set[str]],
        progress: Progress,
    ) -> ImportedWorkspace:
        """Unpack, check and move in. `lock` is held and `reserved` called while names are assigned.

        Raises InvalidRequest or Unsupported if the zip file is not a valid export, DiskFull,
        VerificationFailed, and Stopped if `progress` does; then nothing was changed.
        """
        workspace = self.settings.workspace
        try:
            with opened(source, room=workspace) as reader, staging(workspace) as folder:
                self.entries = reader.manifest.files
                reader.unpack(folder, progress)
                progress("Checking the files", 1.0)
                adapters, runs = self._adapters(folder), self._runs(folder)
                with lock:
                    self.taken = reserved()
                    return self._move_in(folder, adapters, runs)
        except OSError as error:
            raise disk_error(error, workspace) from error

    # -- reading the unpacked files ----------------------------------------------------------------

    def _adapters(self, unpacked: Path) -> list[Found]:
        """Read the staged adapters, each with the identical one in the library, if any."""
        known, found = KnownAdapters(self.library), []
        for folder in staged_adapters.folders(unpacked):
            try:
                staged = staged_adapters.read(folder)
            except ModelError as error:
                self.left_out.append(f"The adapter {folder.name} is left out: {error.what}.")
                continue
            found.append((staged, known.find(self._entries_of("adapters", folder.name))))
        return sorted(found, key=lambda each: each[0].info.created)

    def _runs(self, unpacked: Path) -> list[FoundRun]:
        """Read the staged runs, each with the id of the identical one here, if any."""
        found = []
        for folder in staged_runs.folders(unpacked):
            try:
                staged = staged_runs.read(folder)
            except ModelError as error:
                self.left_out.append(f"The run {folder.name} is left out: {error.what}.")
                continue
            entry = self._entries_of("runs", folder.name).get(staged_runs.EVENTS)
            same = staged_runs.find_same(staged, entry, self.runs)
            found.append((staged, same.id if same is not None else None))
        return found

    def _entries_of(self, kind: str, name: str) -> dict[str, Entry]:
        start = f"{kind}/{name}/"
        return {
            each.removeprefix(start): entry
            for each, entry in self.entries.items()
            if each.startswith(start)
        }

    # -- ids and names ----------------------------------------------------------------------------

    def _move_in(
        self, unpacked: Path, adapters: list[Found], runs: list[FoundRun]
    ) -> ImportedWorkspace:
        moves = Moves(unpacked)
        for staged, same in adapters:
            self._fit_adapter(staged, same, moves)
        for run, same_id in runs:
            self._fit_run(run, same_id, moves)
        self._link(moves)
        recipe, waiting = self._session(unpacked), self._queue(unpacked)
        verified = moves.carry_out(self._settle(recipe, waiting))
        return ImportedWorkspace(
            adapters=self.adapters,
            runs=self.run_names,
            already_there=self.there,
            renamed=self.renamed,
            queued=[item.train.name for item in waiting],
            session=recipe is not None,
            left_out=self.left_out,
            missing_paths=sorted(set(self.missing)),
            verified=verified,
        )

    def _fit_adapter(
        self, staged: staged_adapters.Staged, same: AdapterInfo | None, moves: Moves
    ) -> None:
        """Give an adapter an id and a name that are free here."""
        if same is not None:
            self.there.append(f"the adapter {same.name}")
        info = same or staged_adapters.rename(staged.info, self.library, self.taken)
        self.adapter_ids[staged.info.id], self.names[staged.info.name] = info.id, info.name
        if same is not None:
            return
        self._note_name(staged.info.name, info.name)
        self.adapters.append(info.name)
        self.library.write_sidecar(staged.folder, info)
        moves.add(
            staged.folder,
            self.library.folder(info.id),
            self._entries_of("adapters", staged.info.id),
            rewritten=(SIDECAR,),
        )

    def _note_name(self, there: str, here: str) -> None:
        """Reserve a name, and note it if it was changed."""
        self.taken.add(here)
        if here != there and (there, here) not in self.renamed:
            self.renamed.append((there, here))

    def _fit_run(self, staged: staged_runs.Staged, same: str | None, moves: Moves) -> None:
        """Give a run ids and names that fit this workspace."""
        request = staged.request
        if same is not None:
            self.run_ids[request.run_id] = same
            self.there.append(f"the run {request.train.name}")
            return
        run_id = staged_runs.free_id(request.run_id, self.runs)
        adapter_id = self._adapter_of(request.adapter_id)
        train = self._renamed(request.train, staged.status.state)
        staged_runs.write(staged, run_id=run_id, adapter_id=adapter_id, train=train)
        self.run_ids[request.run_id] = run_id
        self.run_names.append(train.name)
        self.missing += staged_runs.missing_paths(request)
        entries = self._entries_of("runs", request.run_id)
        moves.add(staged.folder, self.runs.root / run_id, entries, rewritten=staged_runs.REWRITTEN)

    def _adapter_of(self, adapter_id: str) -> str:
        """Return the id of a run's adapter here: a new one if the old one is taken."""
        if adapter_id in self.adapter_ids:
            return self.adapter_ids[adapter_id]
        claimed = {summary.adapter_id for summary in self.runs.summaries()}
        is_used = adapter_id in claimed or self.library.folder(adapter_id).exists()
        self.adapter_ids[adapter_id] = new_adapter_id() if is_used else adapter_id
        return self.adapter_ids[adapter_id]

    def _renamed(self, train: Train, state: str) -> Train:
        """Return a run's settings with the names that its adapters have here."""
        name = self.names.get(train.name, train.name)
        if train.name not in self.names and state != "finished":  # it may still create an adapter
            name = self.library.free_name(train.name, self.taken)
            self._note_name(train.name, name)
        start = self.names.get(train.start_from or "", train.start_from)
        return train.model_copy(update={"name": name, "start_from": start})

    def _link(self, moves: Moves) -> None:
        """Replace the run ids in the imported adapters by the ids of the runs here."""
        for folder in moves.sources(self.library.root):
            info = AdapterInfo.model_validate_json((folder / SIDECAR).read_text(encoding="utf-8"))
            run_id = self.run_ids.get(info.run_id or "")
            self.library.write_sidecar(folder, info.model_copy(update={"run_id": run_id}))

    # -- session and queue -------------------------------------------------------------------------

    def _session(self, unpacked: Path) -> Recipe | None:
        """Return the recipe for the next start; this workspace's own recipe is kept."""
        file = unpacked / SESSION
        try:
            recipe = Recipe.load(file) if _is_small(file) else Recipe()
            if recipe.base is None:
                return None
            check_caller(recipe.base, self.settings, self.caller)
        except WorkbenchError as error:
            self.left_out.append(f"The session is left out: {error}")
            return None
        if self._is_missing(recipe.base.source):
            self.missing.append(recipe.base.source)
            self.left_out.append("The session is left out: its base model is not here.")
            return None
        if self.settings.session_file.exists():
            self.left_out.append("The session is left out: this workspace already has one.")
            return None
        active = [(self.names[name], s) for name, s in recipe.active if name in self.names]
        return recipe.model_copy(update={"active": active})

    def _is_missing(self, base: str) -> bool:
        model = PACKAGED_MODELS.get(base)
        if model is not None:
            return not model.is_here(self.settings.models_dir)
        return staged_runs.is_missing(base)

    def _queue(self, unpacked: Path) -> list[Waiting]:
        """Return the waiting runs that can be queued here, for the caller of the import."""
        file = unpacked / QUEUE
        try:
            items = training_queue.parse(file.read_text("utf-8")) if _is_small(file) else []
        except (ValueError, InvalidRequest):
            self.left_out.append("The queue is left out: it cannot be read.")
            return []
        there = self.queue.ids()
        return [kept for item in items if item.id not in there and (kept := self._waiting(item))]

    def _waiting(self, item: Waiting) -> Waiting | None:
        name = item.train.name
        if gone := list(staged_runs.missing(item.train)):
            self.missing += gone
            self.left_out.append(f"The waiting run {name} is left out: its data is not here.")
            return None
        try:
            check_caller(item.train, self.settings, self.caller)
        except WorkbenchError as error:
            self.left_out.append(f"The waiting run {name} is left out: {error}")
            return None
        free = self.library.free_name(name, self.taken)
        self._note_name(name, free)
        start = self.names.get(item.train.start_from or "", item.train.start_from)
        train = item.train.model_copy(update={"name": free, "start_from": start})
        return item.model_copy(update={"train": train, "caller": self.caller})

    def _settle(self, recipe: Recipe | None, waiting: list[Waiting]) -> Callable[[], None]:
        """Return the function that writes queue and session after all folders were moved."""

        def settle() -> None:
            if waiting:
                self.queue.take_over(waiting)
            try:
                if recipe is not None:
                    recipe.save(self.settings.session_file)
            except WorkbenchError:
                for item in waiting:
                    self.queue.remove(item.id)
                raise

        return settle


def _is_small(file: Path) -> bool:
    return file.is_file() and file.stat().st_size <= MOST_TEXT_BYTES
