"""Facts that several screens read from a snapshot: phases, states, and which adapters fit."""

from backend import results as rs

BASE_COLOUR = "#8A8F98"
"""The colour of the base model on all screens: neutral grey."""
PHASES: dict[str, str] = {
    "empty": "No base model",
    "loading": "Loading",
    "ready": "Ready",
    "training": "Training",
    "paused": "Paused",
    "combining": "Blending",
    "swapping": "Hot-swap",
    "chatting": "Answering",
    "merging": "Merging",
    "down": "Not running",
}
STATES: dict[str, str] = {
    "queued": "Waiting",
    "running": "Running",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
    "interrupted": "Interrupted",
    "damaged": "Damaged",
}


def state_word(run: rs.RunSummary) -> str:
    """Name the state that a run is in."""
    return "Paused" if run.paused else STATES[run.state]


def fitting(snapshot: rs.Snapshot) -> list[rs.AdapterInfo]:
    """Return the adapters that were made for the loaded base."""
    return [adapter for adapter in snapshot.adapters if fits(adapter, snapshot.base)]


def as_named(snapshot: rs.Snapshot, name: str) -> str:
    """Return the name as the adapter spells it, if one matches without case; else unchanged."""
    wanted = name.casefold()
    return next((a.name for a in snapshot.adapters if a.name.casefold() == wanted), name)


def answering(snapshot: rs.Snapshot) -> list[rs.AdapterInfo]:
    """Return the adapters that can answer now: those of the base, and a half-trained one."""
    half = snapshot.job.half_trained if snapshot.job else None
    if snapshot.slot is not None:
        return [each for each in fitting(snapshot) if each.name in snapshot.slot.adapters]
    if half is None:
        return fitting(snapshot)
    return [*(adapter for adapter in fitting(snapshot) if adapter.id != half.id), half]


def is_half_trained(adapter: rs.AdapterInfo) -> bool:
    """Return whether an adapter is the current state of a paused run."""
    return adapter.state == "half-trained"


def can_answer(snapshot: rs.Snapshot) -> bool:
    """Return whether the model can answer now; it can while a run is paused."""
    job = snapshot.job
    free = job is None or (job.paused and not job.stopping and not job.answering)
    return snapshot.base is not None and free


def fits(adapter: rs.AdapterInfo, base: rs.ModelFacts | None) -> bool:
    """Return whether an adapter was made for this base."""
    return base is not None and adapter.base_fingerprint == base.fingerprint
