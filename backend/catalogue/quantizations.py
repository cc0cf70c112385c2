"""Catalogue of quantisations: size, cost, and what works with each. Knows no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

QuantizationId = Literal["none", "nf4", "fp4", "int8"]


class Quantization(BaseModel):
    """One way to store the weights of a base's layers."""

    model_config = ConfigDict(frozen=True)

    id: QuantizationId
    title: str
    bits: int
    summary: str
    can: str
    cannot: str


QUANTIZATIONS = {
    each.id: each
    for each in (
        Quantization(
            id="none",
            title="full precision",
            bits=32,
            summary="Exact.",
            can="everything",
            cannot="",
        ),
        Quantization(
            id="int8",
            title="8-bit (int8)",
            bits=8,
            summary="Answers are nearly the same as in full precision.",
            can="train, switch, blend, chat, save; merging goes into the full-precision base",
            cannot="PiSSA, OLoRA",
        ),
        Quantization(
            id="nf4",
            title="4-bit (nf4)",
            bits=4,
            summary="Smallest. Answers change a little.",
            can="train, switch, blend, chat, save; merging goes into the full-precision base",
            cannot="PiSSA, OLoRA",
        ),
        Quantization(
            id="fp4",
            title="4-bit (fp4)",
            bits=4,
            summary="As small as nf4 but less exact; for comparison.",
            can="train, switch, blend, chat, save; merging goes into the full-precision base",
            cannot="PiSSA, OLoRA",
        ),
    )
}


SPEEDS = {"none": 1.0, "int8": 1.13, "nf4": 1.10, "fp4": 1.13}
SPEEDS_FROM = "measured on the starter, fp32, 1 thread of a 2-core AMD EPYC without AVX512"
"""Time of a training step relative to full precision, if nothing was measured here."""

SPEEDS_ON_GPU = {"none": 1.0, "int8": 1.6, "nf4": 1.3, "fp4": 1.3}
SPEEDS_ON_GPU_FROM = "a rule of thumb for GPUs, not measured"
ROOM_FOR_A_RUN = 2.0  # full precision is recommended if twice the size of its weights fits
