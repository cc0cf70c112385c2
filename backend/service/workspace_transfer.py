"""The part of the service that exports and imports a workspace and writes problem reports.

Checks who may do it and which paths are allowed. `backend/workspace` does the work.
"""

from abc import abstractmethod
from pathlib import Path

from backend.errors import NotFound, Unsupported
from backend.permissions import Caller, require_allowed
from backend.results import ExportedWorkspace, ImportedWorkspace, ReportedProblem, Snapshot
from backend.service.engine_client import EngineLink
from backend.service.start_checks import Starts
from backend.settings import Settings
from backend.workspace import problem_report
from backend.workspace.archive import Progress, quietly
from backend.workspace.exporting import Export
from backend.workspace.importing import Import


class WorkspaceTransfer:
    """The service's operations on a whole workspace."""

    settings: Settings
    engine: EngineLink
    starts: Starts

    def export_workspace(
        self,
        destination: Path,
        *,
        checkpoints: bool = False,
        caller: Caller = "local",
        progress: Progress = quietly,
    ) -> ExportedWorkspace:
        """Write adapters, runs, session and queue to a zip file, verify it and describe it.

        `checkpoints` includes the checkpoints of stopped runs. Raises InvalidRequest or DiskFull,
        and what `progress` raises; then no file is left.
        """
        target, starts = self._allowed(destination, caller), self.starts
        export = Export(starts.settings, starts.library, starts.runs, starts.queue)
        return export.run(target, checkpoints=checkpoints, progress=progress)

    def import_workspace(
        self, source: Path, *, caller: Caller = "local", progress: Progress = quietly
    ) -> ImportedWorkspace:
        """Import an exported workspace, whole or not at all; nothing here is replaced.

        Raises NotFound, InvalidRequest, Unsupported, DiskFull or VerificationFailed, and what
        `progress` raises; then nothing was changed.
        """
        path, starts = self._allowed(source, caller), self.starts
        if not path.exists():
            raise NotFound(f"There is no file {path}.", cure="Check the path and try again.")
        brought = Import(starts.settings, starts.library, starts.runs, starts.queue, caller)
        came = brought.run(
            path, lock=self.engine.lock, reserved=starts.reserved_names, progress=progress
        )
        self.engine.version += 1
        return came

    def report_problem(self, destination: Path, *, caller: Caller = "local") -> ReportedProblem:
        """Write a zip file of versions, settings and log lines for a report; nothing private.

        Raises InvalidRequest, Unsupported or DiskFull.
        """
        return problem_report.write(
            self._allowed(destination, caller),
            settings=self.settings,
            library=self.starts.library,
            runs=self.starts.runs,
            snapshot=self.snapshot(),
        )

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Return the state of everything."""

    def _allowed(self, path: Path, caller: Caller) -> Path:
        """Return an absolute path that this caller may use; raises Unsupported, InvalidRequest."""
        if self.settings.demo and caller == "page":
            raise Unsupported(
                "The workspace of this shared demo cannot be exported or imported.",
                cure="Duplicate this Space or run the app on your own machine.",
            )
        if caller != "local":
            require_allowed(path, self.settings)
        return path.expanduser().absolute()
