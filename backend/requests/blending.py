"""Requests that combine adapters: blend them, compare them, merge them into a base model."""

from typing import Literal

from pydantic import field_validator

from backend.catalogue.blends import BlendMethod
from backend.fields import Request, Variant, check_display_name, knob


class Combine(Request):
    """Blend adapters into a new one."""

    name: str = knob(
        label="Name",
        level="basic",
        help="The name of the blend: letters, digits, spaces, - and _.",
    )
    sources: Variant = knob(
        label="Ingredients",
        level="basic",
        min_length=1,
        max_length=20,
        help="The adapters to blend, each with its weight. A negative weight subtracts.",
    )
    method: BlendMethod = knob(
        "cat",
        label="Method",
        level="basic",
        help="How the adapters are combined. cat is exact; svd is smaller, and exact at high rank.",
    )
    rank: int | None = knob(
        None,
        label="Rank",
        ge=1,
        le=4096,
        step=1,
        help="The rank of the blend, for the svd methods. Empty takes the ingredients' largest.",
    )
    density: float = knob(
        0.5,
        label="Density",
        unit="share kept",
        gt=0,
        le=1,
        step=0.05,
        help="Share of each ingredient's values that is kept, for ties, dare and pruning.",
    )
    majority_sign: Literal["total", "frequency"] = knob(
        "total",
        label="Majority sign",
        help="How ties chooses each value's sign: by total size, or by the number of adapters.",
    )
    seed: int = knob(
        42,
        label="Seed",
        ge=0,
        le=2**31 - 1,
        step=1,
        help="dare drops values at random; the same seed drops the same values.",
    )

    _name = field_validator("name")(check_display_name)


class Similarity(Request):
    """Compare adapters by their weight changes."""

    names: list[str] = knob(
        label="Adapters", min_length=1, max_length=20, help="The adapters to compare."
    )


class Merge(Request):
    """Merge adapters into the base and write the result as a model folder."""

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
        help="The type of the merged weights. bf16 is half the size of fp32 and slightly rounded.",
    )
    shard_bytes: int = knob(
        5_000_000_000,
        label="Largest file",
        unit="bytes",
        ge=1_000_000,
        le=50_000_000_000,
        help="The weights are split into files of at most this size.",
    )
