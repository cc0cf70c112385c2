"""A workspace taken to another machine, and a report of a problem."""

from backend.results.base import Result


class ExportedWorkspace(Result):
    """What an export wrote; every file in it was read back and compared by its digest."""

    path: str
    bytes: int
    adapters: int
    runs: int
    files: int
    left_out: list[str]
    """What is not in it, each with the reason, in sentences."""


class ImportedWorkspace(Result):
    """What an import brought; every file was compared with the digest from its export."""

    adapters: list[str]
    """By the names that they have here."""
    runs: list[str]
    already_there: list[str]
    renamed: list[tuple[str, str]]
    """Names there and here, where something else has the name already."""
    queued: list[str]
    session: bool
    """Whether the next start begins with the base and the adapters of the other machine."""
    left_out: list[str]
    missing_paths: list[str]
    """Folders and files that runs name and that do not exist on this machine."""
    verified: int
    """How many files were compared with their digests where they lie now."""


class ReportedProblem(Result):
    """A zip to attach to a report: versions, settings and log lines, nothing private."""

    path: str
    bytes: int
    files: list[str]
    hidden: int
    """How many log lines were left out or shortened because they may hold something private."""
