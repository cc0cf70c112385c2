"""Catalogue of PEFT methods: what a person picks, what it sets, and what it can do.

Strength is "any" where a factor on the adapter's effect means something, and "on-off" where
strength 0 would not be the base (DoRA keeps its changed magnitudes at scaling 0).
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from backend.requests import Lora


class Method(BaseModel):
    """One entry of the catalogue."""

    model_config = ConfigDict(frozen=True)

    id: str
    title: str
    summary: str
    preset: Lora
    strength: Literal["any", "on-off"]
    relative_seconds: float


METHODS = {
    method.id: method
    for method in (
        Method(
            id="lora",
            title="LoRA",
            summary="The standard: small, fast, works for almost everything.",
            preset=Lora(),
            strength="any",
            relative_seconds=1.0,
        ),
        Method(
            id="rslora",
            title="rsLoRA",
            summary="LoRA that keeps learning at high rank (32 and more). Costs nothing extra.",
            preset=Lora(use_rslora=True),
            strength="any",
            relative_seconds=1.0,
        ),
        Method(
            id="dora",
            title="DoRA",
            summary="Learns size and direction apart: a little better at low rank, slower.",
            preset=Lora(use_dora=True),
            strength="on-off",
            relative_seconds=1.5,
        ),
    )
}


def method_of(adapter: Lora) -> Method:
    """Return the catalogue entry that an adapter's settings amount to."""
    if adapter.use_dora:
        return METHODS["dora"]
    return METHODS["rslora" if adapter.use_rslora else "lora"]
