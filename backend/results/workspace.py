"""Results of exporting and importing a workspace, and of a problem report."""

from backend.results.base import Result


class ExportedWorkspace(Result):
    """An export; every file in it was read back and its digest compared."""

    path: str
    bytes: int
    adapters: int
    runs: int
    files: int
    left_out: list[str]
    """Sentences about what is not included, each with its reason."""


class ImportedWorkspace(Result):
    """An import; every file was compared with its digest from the export."""

    adapters: list[str]
    """Names of the imported adapters in this workspace."""
    runs: list[str]
    already_there: list[str]
    renamed: list[tuple[str, str]]
    """Pairs of old and new name, for names that were taken here."""
    queued: list[str]
    session: bool
    """Whether the next start loads the base and the adapters of the other machine."""
    left_out: list[str]
    missing_paths: list[str]
    """Folders and files that runs use and that do not exist on this machine."""
    verified: int
    """How many files were compared with their digests at their final place."""


class ReportedProblem(Result):
    """A zip file to attach to a report: versions, settings and log lines, nothing private."""

    path: str
    bytes: int
    files: list[str]
    hidden: int
    """How many log lines were left out or shortened because they may hold something private."""
