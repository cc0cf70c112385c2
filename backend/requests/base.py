"""Requests about the base model: load it, let it go."""

from typing import Literal, Self

from pydantic import model_validator

from backend.catalogue.chat_templates import ChatTemplateId
from backend.fields import Request, knob

Device = Literal["auto", "cpu", "cuda", "xpu", "mps"]


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
        help="How weights are stored. fp32 is exact, bf16 and fp16 halve the memory; auto goes by "
        "the device.",
    )
    quantization: Literal["none", "nf4", "fp4", "int8"] = knob(
        "none",
        label="Quantisation",
        level="basic",
        help="Keeps layers in 4 bits (nf4, fp4) or 8: less memory, slightly different answers.",
    )
    double_quant: bool = knob(
        False,
        label="Double quantisation",
        help="4-bit only: quantises the scales too. Saves another 7 % and costs a little time.",
    )
    compute_dtype: Literal["auto", "fp32", "bf16"] = knob(
        "auto",
        label="Compute type of 4-bit layers",
        help="What 4-bit weights are unpacked to. auto: bf16 on a GPU that has it, else fp32.",
    )
    device: Device = knob(
        "auto",
        label="Device",
        help="Where it computes; auto takes a GPU if there is one. "
        "cuda is NVIDIA's or AMD's, xpu Intel's, mps Apple's.",
    )
    revision: str | None = knob(
        None,
        label="Revision",
        max_length=200,
        help="Branch, tag or commit of a Hugging Face id; empty means the newest.",
    )

    chat_template: ChatTemplateId = knob(
        "own",
        label="Chat template",
        help="How a conversation becomes text. For a base that brings none: dialogue fits any.",
    )

    @model_validator(mode="after")
    def _four_bit_fields(self) -> Self:
        given = [
            label
            for label, there in (
                ("Double quantisation", self.double_quant),
                ("The compute type", self.compute_dtype != "auto"),
            )
            if there and self.quantization not in ("nf4", "fp4")
        ]
        if given:
            raise ValueError(
                f"{given[0]} is for 4-bit bases, got quantisation {self.quantization!r}. "
                "Choose nf4, or leave it at its default."
            )
        return self


class QuantizationTable(Request):
    """Compare the quantisations of a base before it is loaded; nothing is downloaded but config."""

    source: str = knob(
        "starter",
        label="Base model",
        min_length=1,
        max_length=1000,
        level="basic",
        help="'starter' for the bundled model, a folder with safetensors, or a Hugging Face id.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob(
        "auto", label="Precision", help="How the weights that are not quantised are stored."
    )
    device: Device = knob("auto", label="Device", help="Where the model would compute.")
    double_quant: bool = knob(
        False,
        label="Double quantisation",
        help="Whether the scales of 4-bit blocks would be quantised as well.",
    )
    revision: str | None = knob(
        None,
        label="Revision",
        max_length=200,
        help="Branch, tag or commit of a Hugging Face id; empty means the newest.",
    )
    measure: bool = knob(
        False,
        label="Measure the speed here",
        help="Times training steps of the starter in each quantisation: about half a minute.",
    )


class UnloadModel(Request):
    """Let the base model and all its adapters go; what is saved stays saved."""
