"""What a paused run leaves free: the model answers meanwhile, and nothing else changes it."""

from typing import Any

from backend.errors import Busy
from backend.operations import WHILE_PAUSED
from backend.requests import Request
from backend.results import AdapterInfo
from backend.service.jobs import Job


def require_open(current: Job | None, guest: Job | None, request: Request | None) -> None:
    """Raise Busy where the model is not free: a paused run leaves it to who only asks something."""
    if current is None:
        return
    is_open = current.paused and current.wish != "resume" and not current.stops
    if guest is not None or not is_open:
        title = (guest or current).title
        raise Busy(f"{title} is still going on.", cure="Wait for it or stop it.")
    if not isinstance(request, WHILE_PAUSED):
        raise Busy(
            f"{current.title} is paused, and the model only answers meanwhile.",
            cure="Let it go on and wait for it, or stop it.",
        )


def hear(job: Job, message: dict[str, Any]) -> None:
    """Take over what the engine says of a run: that it holds still, or that it goes on."""
    paused = message["type"] == "paused"
    job.half_trained = AdapterInfo.model_validate(message["adapter"]) if paused else None
    if job.wish == ("pause" if paused else "resume"):
        job.wish = ""
