"""Requests about the base model: load it, let it go."""

from typing import Literal

from backend.fields import Request, knob


class LoadModel(Request):
    """Load a base model into the session; a base that is already there leaves first."""

    source: str = knob(
        "starter",
        label="Base model",
        min_length=1,
        max_length=1000,
        level="basic",
        help="'starter' for the bundled model, a folder with safetensors, or a Hugging Face id.",
    )
    task: Literal["causal-lm"] = knob(
        "causal-lm", label="Task", help="What the model does: it continues text."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob(
        "auto",
        label="Precision",
        help="How weights are stored. fp32 is exact; bf16 halves the memory. "
        "auto: fp32 on a processor, bf16 on a GPU.",
    )
    device: Literal["auto", "cpu", "cuda"] = knob(
        "auto", label="Device", help="Where the model computes; auto takes a GPU if there is one."
    )
    revision: str | None = knob(
        None,
        label="Revision",
        max_length=200,
        help="Branch, tag or commit of a Hugging Face id; empty means the newest.",
    )


class UnloadModel(Request):
    """Let the base model and all its adapters go; what is saved stays saved."""
