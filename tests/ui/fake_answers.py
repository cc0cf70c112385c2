"""What the scripted engine answers about a run, a base or data before anything is started."""

import math

from backend import requests as rq
from backend import results as rs
from backend.catalogue.quantizations import QUANTIZATIONS, SPEEDS
from tests.ui.fake_facts import FACTS, STATS


def preflight(request: rq.Preflight, step_seconds: float) -> rs.PreflightReport:
    steps = math.ceil(12 * request.train.epochs)
    return rs.PreflightReport(
        ready=True,
        problems=[],
        notes=[],
        matched_modules=[f"layer.{i}.q_proj" for i in range(28)],
        trainable_parameters=31_744 * request.train.adapter.rank // 8,
        total_parameters=FACTS.parameters,
        stats=STATS,
        steps=steps,
        memory_bytes=310 * 1024**2,
        memory_available_bytes=20 * 1024**3,
        seconds=steps * step_seconds,
        seconds_from="one timed step",
    )


def quantization_table(request: rq.QuantizationTable) -> rs.QuantizationTable:
    choices = [
        rs.QuantizationChoice(
            quantization=each.id,
            title=each.title,
            memory_bytes=FACTS.memory_measured_bytes * each.bits // 32,
            run_bytes=140 * 1024**2,
            relative_seconds=SPEEDS[each.id],
            fits=True,
            summary=each.summary,
            can=each.can,
            cannot=each.cannot,
        )
        for each in QUANTIZATIONS.values()
    ]
    return rs.QuantizationTable(
        source=request.source,
        precision="fp32",
        device="cpu",
        parameters=FACTS.parameters,
        free_bytes=20 * 1024**3,
        choices=choices,
        recommended="none",
        reason="Full precision is exact and fits.",
        speed_from="measured on this machine" if request.measure else "measured elsewhere",
    )


def preview() -> rs.DataPreview:
    pieces = [("<|user|>Where is the cat?<|assistant|>", False), ("Arr, on the mat!", True)]
    return rs.DataPreview(
        rows=600,
        problems=[rs.RowProblem(row=3, what="the answer is <b>empty</b>")],
        stats=STATS,
        examples=[rs.Example(pieces=pieces, tokens=20, cut=False)],
        bad=1,
        shape=STATS.shape,
        shape_reason=STATS.shape_reason,
        columns=("messages",),
    )


def on_the_hub(request: rq.DescribeHubData) -> rs.HubDescription:
    return rs.HubDescription(
        source="someone/set:en:train",
        id="someone/set",
        license="cc-by-4.0",
        configurations=("en", "de"),
        configuration="en",
        splits=("train", "test"),
        split="train",
        held_out="test",
        rows=600,
        held_out_rows=20,
        files=2,
        download_bytes=3 * 1024**2,
        prepared_bytes=4 * 1024**2,
        needed_bytes=7 * 1024**2,
        free_bytes=9 * 1024**3,
        first_rows=({"question": "Where is <b>the cat</b>?", "answer": "Arr"},),
    )
