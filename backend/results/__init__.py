"""The outcome of every operation and the state of the session, as immutable data.

Bytes and seconds everywhere; rounding for people is the screen's business.
"""

from backend.results.adapters import (
    ActiveSet,
    AdapterInfo,
    AdapterReport,
    AdapterStatus,
    Blend,
    Converted,
    LayerNorm,
    LoadedAdapter,
    Merged,
    MergeNeeds,
    Removed,
    Renamed,
    SavedAdapter,
    SimilarityReport,
)
from backend.results.base import (
    ModelFacts,
    Problem,
    QuantizationChoice,
    QuantizationTable,
    Result,
    Unloaded,
)
from backend.results.hotswap import PreparedSlot, SlotLeft, SlotStatus, Swapped, SwapTimes
from backend.results.snapshot import JobInfo, Notice, Phase, Snapshot
from backend.results.talking import Answer, Answers, NextTokens, Scores, SideAnswers
from backend.results.training import (
    DataPreview,
    DataStats,
    Evaluation,
    Example,
    PreflightReport,
    RowProblem,
    RunResult,
    RunState,
    RunSummary,
)

__all__ = [
    "ActiveSet",
    "AdapterInfo",
    "AdapterReport",
    "AdapterStatus",
    "Answer",
    "Answers",
    "Blend",
    "Converted",
    "DataPreview",
    "DataStats",
    "Evaluation",
    "Example",
    "JobInfo",
    "LayerNorm",
    "LoadedAdapter",
    "MergeNeeds",
    "Merged",
    "ModelFacts",
    "NextTokens",
    "Notice",
    "Phase",
    "PreflightReport",
    "PreparedSlot",
    "Problem",
    "QuantizationChoice",
    "QuantizationTable",
    "Removed",
    "Renamed",
    "Result",
    "RowProblem",
    "RunResult",
    "RunState",
    "RunSummary",
    "SavedAdapter",
    "Scores",
    "SideAnswers",
    "SimilarityReport",
    "SlotLeft",
    "SlotStatus",
    "Snapshot",
    "SwapTimes",
    "Swapped",
    "Unloaded",
]
