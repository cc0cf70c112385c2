"""The settings of a run once more: as they were, changed as a button says, or so that they fit."""

from backend import requests as rq
from ui.components import data_sets
from ui.components.service_handle import ServiceHandle
from ui.train.memory_card import with_changes


def settings(handle: ServiceHandle, run_id: str, act: str) -> rq.Train:
    """Return a run's settings with a free name; "slower" and "best" change one of them."""
    train = handle.service.runs.get(run_id).request.train
    changes = {
        "name": handle.free_name(train.name),
        "learning_rate": train.rate / 4 if act == "slower" else train.rate,
        "keep_best": act == "best" or train.keep_best,
    }
    return train.model_copy(update=changes)


def fitting(handle: ServiceHandle, run_id: str) -> rq.Train:
    """Return the settings with which a run that ran out of memory would fit."""
    run = handle.service.runs.get(run_id)
    train = with_changes(run.request.train, run.status().retry)
    return train.model_copy(update={"name": handle.free_name(train.name)})


def other_name(handle: ServiceHandle, run_id: str) -> str:
    """Return a free name for another adapter from the same data."""
    train = handle.service.runs.get(run_id).request.train
    return handle.free_name(data_sets.suggested_name(train.data))
