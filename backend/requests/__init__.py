"""The input of every operation: frozen models whose fields have a label, a help text and bounds.

The form, the command line, the HTTP API and the documentation are all generated from these fields.
A value out of bounds is rejected here, before anything starts. Knows nothing of the engine.
"""

import re
from typing import Any, get_args

from backend.catalogue.blends import BlendMethod
from backend.catalogue.methods import Lora
from backend.errors import InvalidRequest
from backend.fields import Request, Strength, Variant
from backend.requests.adapters import (
    DeleteAdapter,
    InspectAdapter,
    LoadAdapter,
    PushAdapter,
    RenameAdapter,
    RestoreAdapter,
    SaveAdapter,
    SetActive,
    UnloadAdapter,
)
from backend.requests.base import LoadModel, QuantizationTable, UnloadModel
from backend.requests.blending import Combine, Merge, Similarity
from backend.requests.data import (
    Columns,
    DescribeHubData,
    DownloadHubData,
    LongExamples,
    PrepareData,
    PreviewData,
)
from backend.requests.hotswap import ConvertAdapter, EndHotswap, Hotswap, PrepareHotswap
from backend.requests.steering import Adjust
from backend.requests.talking import Chat, Compare, Message, NextToken, Score, SideBySide
from backend.requests.training import ExportRun, Preflight, Resume, Train

__all__ = [
    "BY_NAME",
    "Adjust",
    "BlendMethod",
    "Chat",
    "Columns",
    "Combine",
    "Compare",
    "ConvertAdapter",
    "DeleteAdapter",
    "DescribeHubData",
    "DownloadHubData",
    "EndHotswap",
    "ExportRun",
    "Hotswap",
    "InspectAdapter",
    "LoadAdapter",
    "LoadModel",
    "LongExamples",
    "Lora",
    "Merge",
    "Message",
    "ModelRequest",
    "NextToken",
    "Preflight",
    "PrepareData",
    "PrepareHotswap",
    "PreviewData",
    "PushAdapter",
    "QuantizationTable",
    "RenameAdapter",
    "Request",
    "RestoreAdapter",
    "Resume",
    "SaveAdapter",
    "Score",
    "SetActive",
    "SideBySide",
    "SideRequest",
    "Similarity",
    "Strength",
    "Train",
    "UnloadAdapter",
    "UnloadModel",
    "Variant",
    "name_of",
    "parse",
]

ModelRequest = (
    LoadModel
    | UnloadModel
    | Train
    | Resume
    | LoadAdapter
    | UnloadAdapter
    | SaveAdapter
    | SetActive
    | DeleteAdapter
    | RestoreAdapter
    | RenameAdapter
    | Combine
    | PrepareHotswap
    | Hotswap
    | EndHotswap
    | ConvertAdapter
    | Compare
    | Score
    | NextToken
)
"""Operations on the session's model; only one runs at a time."""

SideRequest = (
    Preflight
    | PreviewData
    | PrepareData
    | DescribeHubData
    | DownloadHubData
    | InspectAdapter
    | Similarity
    | Merge
    | QuantizationTable
    | ExportRun
    | PushAdapter
)
"""Operations that never change the session, so they never raise Busy."""

BY_NAME: dict[str, type[Request]] = {
    re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower(): kind
    for kind in (*get_args(ModelRequest), *get_args(SideRequest), Chat, SideBySide)
}
"""Requests by their name on the command line and in saved files: `load-model`, `train`..."""


def name_of(request: Request) -> str:
    """Return the command-line name of a request."""
    return next(name for name, kind in BY_NAME.items() if type(request) is kind)


def parse(name: str, data: dict[str, Any]) -> Request:
    """Build the request called `name`; raises InvalidRequest with a readable sentence."""
    if name not in BY_NAME:
        raise InvalidRequest(
            f"There is no operation called {name!r}.", cure=f"Known: {', '.join(BY_NAME)}."
        )
    return BY_NAME[name](**data)
