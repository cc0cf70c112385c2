"""The table of operations: request, result, phase of the session, and title of each."""

from collections.abc import Callable
from typing import Any, NamedTuple

from backend import requests as rq
from backend import results as rs
from backend.library import LIBRARY_SOURCE
from backend.permissions import adapter_on_hub, on_hub


class Operation(NamedTuple):
    """What the service must know of an operation; with `phase` None the session stays ready."""

    result: type[rs.Result]
    phase: rs.Phase | None
    title: Callable[[Any], str]
    beside: Callable[[Any], bool] = lambda request: False
    """Whether it runs in a separate process, even if the engine is idle, and is shown.

    This holds for operations that may take long: a merge, a measurement, a download.
    """
    trusted: Callable[[Any], bool] = lambda request: False
    """Whether a side request only reads files that the workbench wrote and checked itself."""
    needs_weights: Callable[[Any, Any], bool] = lambda request, result: False
    """Whether the result from files alone is incomplete without the base's weights."""


def _names(variant: rq.Variant) -> str:
    return ", ".join(name for name, _ in variant)


def _file_name(source: str) -> str:
    return source.rstrip("/").rsplit("/", 1)[-1]


OPERATIONS: dict[type[rq.Request], Operation] = {
    rq.LoadModel: Operation(rs.ModelFacts, "loading", lambda r: f"Loading {r.source}"),
    rq.UnloadModel: Operation(rs.Unloaded, "loading", lambda r: "Unloading the base"),
    rq.Train: Operation(rs.RunResult, "training", lambda r: f"Training {r.name}"),
    rq.Resume: Operation(rs.RunResult, "training", lambda r: "Resuming a run"),
    rq.SaveAdapter: Operation(rs.SavedAdapter, None, lambda r: f"Saving {r.name}"),
    rq.LoadAdapter: Operation(rs.LoadedAdapter, "loading", lambda r: f"Adding {r.source}"),
    rq.UnloadAdapter: Operation(rs.Removed, None, lambda r: f"Unloading {r.name}"),
    rq.DeleteAdapter: Operation(rs.Removed, None, lambda r: f"Deleting {r.name}"),
    rq.RestoreAdapter: Operation(rs.Renamed, None, lambda r: f"Restoring {r.name}"),
    rq.RenameAdapter: Operation(rs.Renamed, None, lambda r: f"Renaming {r.name}"),
    rq.Combine: Operation(rs.Blend, "combining", lambda r: f"Blending {r.name}"),
    rq.PrepareHotswap: Operation(rs.PreparedSlot, "swapping", lambda r: "Preparing the slot"),
    rq.Hotswap: Operation(rs.Swapped, "swapping", lambda r: f"Swapping to {r.adapter or 'base'}"),
    rq.EndHotswap: Operation(rs.SlotLeft, "swapping", lambda r: "Leaving the slot"),
    rq.ConvertAdapter: Operation(rs.Converted, "combining", lambda r: f"Converting {r.name}"),
    rq.SetActive: Operation(rs.ActiveSet, None, lambda r: "Switching adapters"),
    rq.Chat: Operation(rs.Answer, "chatting", lambda r: "Answering"),
    rq.Compare: Operation(rs.Answers, "chatting", lambda r: "Comparing answers"),
    rq.Score: Operation(rs.Scores, "chatting", lambda r: "Scoring texts"),
    rq.SideBySide: Operation(rs.SideAnswers, "chatting", lambda r: "Answering side by side"),
    rq.NextToken: Operation(rs.NextTokens, "chatting", lambda r: "Predicting the next word"),
    rq.InspectAdapter: Operation(
        rs.AdapterReport,
        None,
        lambda r: f"Inspecting {r.source}",
        beside=lambda r: adapter_on_hub(r.source),
        trusted=lambda r: r.source.startswith(LIBRARY_SOURCE),
        needs_weights=lambda r, result: result.verdict != "cannot",
    ),
    rq.Similarity: Operation(
        rs.SimilarityReport, None, lambda r: "Comparing adapters", trusted=lambda r: True
    ),
    rq.Merge: Operation(
        rs.Merged, "merging", lambda r: f"Merging {_names(r.variant)}", beside=lambda r: True
    ),
    rq.QuantizationTable: Operation(
        rs.QuantizationTable,
        None,
        lambda r: f"Comparing quantisations of {r.source}",
        beside=lambda r: r.measure,
    ),
    rq.Preflight: Operation(
        rs.PreflightReport,
        None,
        lambda r: "Checking a run",
        beside=lambda r: on_hub(r.train.data),
        needs_weights=lambda r, result: r.measure and result.ready and result.seconds is None,
    ),
    rq.PreviewData: Operation(
        rs.DataPreview, None, lambda r: "Reading data", beside=lambda r: on_hub(r.data)
    ),
    rq.PrepareData: Operation(
        rs.PreparedData, None, lambda r: f"Checking {_file_name(r.data)}", beside=lambda r: True
    ),
    rq.DescribeHubData: Operation(rs.HubDescription, None, lambda r: f"Looking up {r.data}"),
    rq.DownloadHubData: Operation(
        rs.DownloadedData, None, lambda r: f"Downloading {r.data}", beside=lambda r: True
    ),
    rq.ExportRun: Operation(rs.ExportedRun, None, lambda r: "Exporting a run"),
    rq.PushAdapter: Operation(
        rs.PushedAdapter, None, lambda r: f"Sending {r.name} to the Hub", beside=lambda r: True
    ),
}

WHILE_PAUSED = (rq.Chat, rq.SideBySide, rq.Compare, rq.Score, rq.NextToken, rq.SaveAdapter)
"""Requests that may use the model while a run is paused; they do not affect the run."""
