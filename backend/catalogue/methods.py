"""Catalogue of PEFT methods: their settings, titles and abilities. Knows no tensors.

`strength` is "any" if the adapter's effect can be scaled by a factor, and "on-off" if strength 0
would not give the base (DoRA keeps its changed magnitudes at scaling 0).
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from backend.fields import Request, knob
from backend.refusals import shown


class Lora(Request):
    """LoRA (Hu et al. 2021) and its variants rsLoRA (rank-stabilised) and DoRA."""

    method: Literal["lora"] = "lora"
    rank: int = knob(
        8,
        label="Rank",
        ge=1,
        le=1024,
        level="basic",
        step=1,
        help="The adapter's capacity. A higher rank learns more and takes more memory and time.",
    )
    alpha: float | None = knob(
        None,
        label="Alpha",
        gt=0,
        le=4096,
        help="Scales the adapter's effect. Empty means twice the rank, which suits most data.",
    )
    dropout: float = knob(
        0.0,
        label="Dropout",
        ge=0,
        lt=1,
        step=0.05,
        help="Share of the adapter's input dropped at random. More reduces overfitting.",
    )
    targets: Literal["all-linear", "attention"] | list[str] = knob(
        "all-linear",
        label="Target modules",
        help="Which layers to train: all linear layers, attention only, or names such as q_proj.",
    )
    experts: bool = knob(
        False,
        label="Train the experts, too",
        help="Also adapts the parameters of a mixture's experts (PEFT: target_parameters). Needs "
        "more memory.",
    )
    use_rslora: bool = knob(
        False,
        label="Rank-stabilised (rsLoRA)",
        help="Divides alpha by the square root of the rank, which helps high ranks. No extra cost.",
    )
    use_dora: bool = knob(
        False,
        label="Weight-decomposed (DoRA)",
        help="Trains magnitude and direction separately. Often better at low rank; 1.5x slower.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _split_names(cls, targets: Any) -> Any:
        if isinstance(targets, str) and targets not in ("all-linear", "attention"):
            return [name.strip() for name in targets.split(",") if name.strip()]
        return targets

    @field_validator("targets")
    @classmethod
    def _plain_names(cls, targets: str | list[str]) -> str | list[str]:
        if isinstance(targets, str):
            return targets
        if not targets:
            raise ValueError("Name at least one module, for example q_proj, or choose all-linear.")
        for name in targets:
            if not re.fullmatch(r"[A-Za-z0-9_.]{1,200}", name):
                raise ValueError(
                    f"{shown(name)} is not a module name. "
                    "Names look like q_proj or self_attn.v_proj."
                )
        return targets

    @property
    def effective_alpha(self) -> float:
        """The alpha that PEFT gets."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank


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
            summary="LoRA scaled for high ranks (32 and more). No extra cost.",
            preset=Lora(use_rslora=True),
            strength="any",
            relative_seconds=1.0,
        ),
        Method(
            id="dora",
            title="DoRA",
            summary="Trains magnitude and direction separately. Often better at low rank; slower.",
            preset=Lora(use_dora=True),
            strength="on-off",
            relative_seconds=1.5,
        ),
    )
}


def method_of(adapter: Lora) -> Method:
    """Return the catalogue entry that matches an adapter's settings."""
    if adapter.use_dora:
        return METHODS["dora"]
    return METHODS["rslora" if adapter.use_rslora else "lora"]
