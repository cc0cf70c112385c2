"""Every error that a user can see, and how it is sent from the worker to the service.

WorkbenchError
+-- InvalidRequest      a field has a value that is not allowed
+-- NotFound            a model, adapter, run, file or data set that does not exist
+-- Unsupported         a valid request that this model, adapter or machine cannot carry out
+-- Busy                another model job is running
+-- Stopped             the user stopped the job before it had a result
+-- DataError           the training data cannot be used
|   +-- DataChanged     the data is not what the run began with
+-- ModelError          a base model folder cannot be loaded
+-- OutOfMemory         the job needed more memory than the machine has
+-- DiskFull            a file could not be written
+-- Damaged             a file of the workspace cannot be read
+-- Diverged            training produced numbers that are not finite
+-- VerificationFailed  an operation was undone because its result was not right
+-- WorkerDied          the model process ended during a job

The text of an error is shown to the user unchanged: what happened, with which value, and what to
do.
"""

from typing import Any


class WorkbenchError(Exception):
    """An error whose text is shown to the user; `cure` is a hint about what to do."""

    def __init__(self, what: str, *, cure: str = "", details: str = "") -> None:
        super().__init__(what if not cure else f"{what} {cure}")
        self.what = what
        self.cure = cure
        self.details = details

    def to_dict(self) -> dict[str, str]:
        """Return the error as a dictionary that can be written as JSON."""
        return {
            "kind": type(self).__name__,
            "what": self.what,
            "cure": self.cure,
            "details": self.details,
        }


class InvalidRequest(WorkbenchError):
    """A field has a value that is not allowed."""


class NotFound(WorkbenchError):
    """A model, adapter, run, file or data set that does not exist."""


class Unsupported(WorkbenchError):
    """A valid request that this model, adapter or machine cannot carry out."""


class Busy(WorkbenchError):
    """Another model job is running."""


class Stopped(WorkbenchError):
    """The user stopped the job before it had a result."""


class DataError(WorkbenchError):
    """The training data cannot be used; `droppable` if it can be used without its bad rows."""

    droppable = False


class DataChanged(DataError):
    """The data is not what the run began with, or was queued with; a decision is needed."""


class ModelError(WorkbenchError):
    """A base model folder cannot be loaded."""


class OutOfMemory(WorkbenchError):
    """The job needed more memory than the machine has."""


class DiskFull(WorkbenchError):
    """A file could not be written."""


class Damaged(WorkbenchError):
    """A file of the workspace cannot be read."""


class Diverged(WorkbenchError):
    """Training produced numbers that are not finite."""


class VerificationFailed(WorkbenchError):
    """An operation was undone because its result was not right."""


class WorkerDied(WorkbenchError):
    """The model process ended during a job."""


_KINDS: dict[str, type[WorkbenchError]] = {
    kind.__name__: kind for kind in (*WorkbenchError.__subclasses__(), DataChanged)
}


def from_dict(data: dict[str, Any]) -> WorkbenchError:
    """Rebuild an error from the result of `WorkbenchError.to_dict`."""
    kind = _KINDS.get(str(data.get("kind")), WorkbenchError)
    return kind(
        str(data.get("what", "")),
        cure=str(data.get("cure", "")),
        details=str(data.get("details", "")),
    )
