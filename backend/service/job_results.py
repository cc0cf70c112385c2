"""The result or error of a job, read from the engine's last message about it."""

from typing import Any

from backend.errors import WorkbenchError, from_dict
from backend.operations import OPERATIONS
from backend.results import Result
from backend.service.jobs import Job


def outcome_of(job: Job, message: dict[str, Any]) -> tuple[Result | None, WorkbenchError | None]:
    """Return a job's result or its error; a result that cannot be read is an error too."""
    if message["type"] == "error":
        return None, from_dict(message["error"])
    try:
        return OPERATIONS[type(job.request)].result.model_validate(message["result"]), None
    except (KeyError, ValueError) as error:
        return None, unreadable(job, error)


def unreadable(job: Job, error: Exception) -> WorkbenchError:
    """Return the error for a job that ended with an unreadable result."""
    return WorkbenchError(
        f"{job.title} has ended, but its result could not be read.",
        cure="Try it again. If it happens again, report it with the details.",
        details=f"{type(error).__name__}: {error}",
    )
