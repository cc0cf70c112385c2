"""Rules for a paused run: the model may answer, but nothing may change it."""

from typing import Any

from backend.errors import Busy
from backend.operations import WHILE_PAUSED
from backend.requests import Request
from backend.results import AdapterInfo
from backend.service.jobs import Job


def require_open(current: Job | None, guest: Job | None, request: Request | None) -> None:
    """Raise Busy if the model is not free; during a pause only questions are allowed."""
    if current is None:
        return
    is_open = current.paused and current.wish != "resume" and not current.stops
    if guest is not None or not is_open:
        title = (guest or current).title
        raise Busy(f"{title} is still going on.", cure="Wait for it or stop it.")
    if not isinstance(request, WHILE_PAUSED):
        raise Busy(
            f"{current.title} is paused. During a pause the model can only answer.",
            cure="Resume it and wait for it, or stop it.",
        )


def hear(job: Job, message: dict[str, Any]) -> None:
    """Apply the engine's message that a run has paused or resumed."""
    paused = message["type"] == "paused"
    job.half_trained = AdapterInfo.model_validate(message["adapter"]) if paused else None
    if job.wish == ("pause" if paused else "resume"):
        job.wish = ""
