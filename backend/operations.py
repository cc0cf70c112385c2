"""One line per operation: its request, its result, the phase it puts the session in, its title."""

from collections.abc import Callable
from typing import Any, NamedTuple

from backend import requests as rq
from backend import results as rs


class Operation(NamedTuple):
    """What the service needs to know of an operation; `phase` None leaves the session ready."""

    result: type[rs.Result]
    phase: rs.Phase | None
    title: Callable[[Any], str]


OPERATIONS: dict[type[rq.Request], Operation] = {
    rq.LoadModel: Operation(rs.ModelFacts, "loading", lambda r: f"Loading {r.source}"),
    rq.UnloadModel: Operation(rs.Unloaded, "loading", lambda r: "Unloading the base"),
    rq.Train: Operation(rs.RunResult, "training", lambda r: f"Training {r.name}"),
    rq.Resume: Operation(rs.RunResult, "training", lambda r: "Resuming a run"),
    rq.SaveAdapter: Operation(rs.SavedAdapter, None, lambda r: f"Saving {r.name}"),
    rq.SetActive: Operation(rs.ActiveSet, None, lambda r: "Switching adapters"),
    rq.Chat: Operation(rs.Answer, "chatting", lambda r: "Answering"),
    rq.Compare: Operation(rs.Answers, "chatting", lambda r: "Comparing answers"),
    rq.Score: Operation(rs.Scores, "chatting", lambda r: "Scoring texts"),
    rq.Preflight: Operation(rs.PreflightReport, None, lambda r: "Checking a run"),
    rq.PreviewData: Operation(rs.DataPreview, None, lambda r: "Looking at data"),
}
