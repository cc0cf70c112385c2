"""Requests about the base model: load it, compare its quantisations, unload it."""

from typing import Literal, Self

from pydantic import model_validator

from backend.catalogue.chat_templates import ChatTemplateId
from backend.fields import Request, knob

Device = Literal["auto", "cpu", "cuda", "xpu", "mps"]
SOURCE_HELP = (
    "'starter', 'smollm2', a folder with safetensors, a GGUF file, or a Hub id (owner/repo, "
    "owner/repo:x.gguf)."
)


class LoadModel(Request):
    """Load a base model into the session; a base that is already loaded is unloaded first."""

    source: str = knob(
        "starter",
        label="Base model",
        min_length=1,
        max_length=1000,
        level="basic",
        help=SOURCE_HELP,
    )
    task: Literal["causal-lm"] = knob(
        "causal-lm", label="Task", help="What kind of model it is. causal-lm generates text."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob(
        "auto",
        label="Precision",
        help="How weights are stored. fp32 is full precision; bf16 and fp16 halve the memory. auto "
        "depends on the device.",
    )
    quantization: Literal["none", "nf4", "fp4", "int8"] = knob(
        "none",
        label="Quantisation",
        level="basic",
        help="Stores layers in 4 bits (nf4, fp4) or 8: less memory, slightly different answers.",
    )
    double_quant: bool = knob(
        False,
        label="Double quantisation",
        help="4-bit only: quantises the scales too. Saves another 7 % of memory, slightly slower.",
    )
    compute_dtype: Literal["auto", "fp32", "bf16"] = knob(
        "auto",
        label="Compute type of 4-bit layers",
        help="The type that 4-bit weights are unpacked to. auto: bf16 if the GPU supports it, else "
        "fp32.",
    )
    device: Device = knob(
        "auto",
        label="Device",
        help="Where the model runs. auto takes a GPU if there is one. "
        "cuda is NVIDIA or AMD, xpu is Intel, mps is Apple.",
    )
    revision: str | None = knob(
        None,
        label="Revision",
        max_length=200,
        help="Branch, tag or commit of a Hugging Face id. Empty means the newest.",
    )

    chat_template: ChatTemplateId = knob(
        "own",
        label="Chat template",
        help="How a conversation becomes text. For a base without a template, dialogue fits.",
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
                f"{given[0]} is only for 4-bit bases, got quantisation {self.quantization!r}. "
                "Choose nf4, or leave it at its default."
            )
        return self


class QuantizationTable(Request):
    """Compare the quantisations of a base before it is loaded; only its config is downloaded."""

    source: str = knob(
        "starter",
        label="Base model",
        min_length=1,
        max_length=1000,
        level="basic",
        help=SOURCE_HELP,
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob(
        "auto", label="Precision", help="The type of the weights that are not quantised."
    )
    device: Device = knob("auto", label="Device", help="Where the model would run.")
    double_quant: bool = knob(
        False,
        label="Double quantisation",
        help="Whether the scales of 4-bit blocks are quantised too.",
    )
    revision: str | None = knob(
        None,
        label="Revision",
        max_length=200,
        help="Branch, tag or commit of a Hugging Face id. Empty means the newest.",
    )
    measure: bool = knob(
        False,
        label="Measure the speed here",
        help="Times training steps of the starter in each quantisation (about half a minute).",
    )


class UnloadModel(Request):
    """Unload the base model and all its adapters; saved adapters stay in the library."""
