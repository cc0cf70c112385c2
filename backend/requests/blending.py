"""Requests that make one thing of several: blend adapters, compare them, merge them into a base."""

from typing import Literal

from pydantic import field_validator

from backend.catalogue.blends import BlendMethod
from backend.fields import Request, Variant, check_display_name, knob


class Combine(Request):
    """Blend adapters into a new one."""

    name: str = knob(
        label="Name",
        level="basic",
        help="What the blend is called: letters, digits, spaces, - and _.",
    )
    sources: Variant = knob(
        label="Ingredients",
        level="basic",
        min_length=1,
        max_length=20,
        help="The adapters to blend, each with its weight. A negative weight takes away.",
    )
    method: BlendMethod = knob(
        "cat",
        label="Method",
        level="basic",
        help="How the ingredients become one adapter. cat is exact; svd is exact and smaller.",
    )
    rank: int | None = knob(
        None,
        label="Rank",
        ge=1,
        le=4096,
        step=1,
        help="How much the blend can hold, for the svd methods; empty takes the largest source.",
    )
    density: float = knob(
        0.5,
        label="Density",
        unit="share kept",
        gt=0,
        le=1,
        step=0.05,
        help="Share of each ingredient's numbers that is kept, for ties, dare and pruning.",
    )
    majority_sign: Literal["total", "frequency"] = knob(
        "total",
        label="Majority sign",
        help="How ties decides which way a number goes: by total size, or by counting.",
    )
    seed: int = knob(
        42,
        label="Seed",
        ge=0,
        le=2**31 - 1,
        step=1,
        help="dare leaves numbers out at random; the same seed leaves out the same ones.",
    )

    _name = field_validator("name")(check_display_name)


class Similarity(Request):
    """Compare adapters with each other by what they change."""

    names: list[str] = knob(
        label="Adapters", min_length=1, max_length=20, help="The adapters to compare."
    )


class Merge(Request):
    """Write base and adapters as one model folder, a base like any other."""

    variant: Variant = knob(
        label="Adapters",
        level="basic",
        min_length=1,
        max_length=20,
        help="The adapters to merge into the base, each with its strength.",
    )
    destination: str = knob(
        label="Folder",
        level="basic",
        min_length=1,
        max_length=1000,
        help="A new or empty folder for the merged model.",
    )
    precision: Literal["as-base", "fp32", "bf16", "fp16"] = knob(
        "as-base",
        label="Precision",
        level="basic",
        help="How the merged weights are stored; bf16 is half of fp32 and slightly rounded.",
    )
    shard_bytes: int = knob(
        5_000_000_000,
        label="Largest file",
        unit="bytes",
        ge=1_000_000,
        le=50_000_000_000,
        help="Weights are spread over files of at most this size.",
    )
