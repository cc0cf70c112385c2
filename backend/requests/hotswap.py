"""Requests about the hot-swap slot: prepare it, swap its adapter, leave it, convert adapters."""

from pydantic import field_validator

from backend.fields import NAME_LENGTH, Request, check_display_name, knob


class PrepareHotswap(Request):
    """Compile the model once with a slot; then the chosen adapters can be swapped in it."""

    adapters: list[str] = knob(
        label="Adapters for the slot",
        level="basic",
        min_length=1,
        max_length=50,
        help="Plain LoRA adapters to swap in the slot. Their ranks and target modules may differ.",
    )
    compile: bool = knob(
        True,
        label="Compile",
        help="Can make answers faster but takes minutes to prepare; both speeds are measured and "
        "shown. Without it swapping is still instant.",
    )


class Hotswap(Request):
    """Put one of the prepared adapters into the slot; an empty name means the base alone."""

    adapter: str = knob(
        label="Adapter",
        level="basic",
        max_length=NAME_LENGTH,
        help="A prepared adapter. Empty means the base alone.",
    )


class EndHotswap(Request):
    """Leave the slot and restore the session as it was before the slot was prepared."""


class ConvertAdapter(Request):
    """Convert an adapter of another kind to plain LoRA, so that it can be swapped and blended."""

    name: str = knob(
        label="Adapter", min_length=1, max_length=NAME_LENGTH, help="The adapter to convert."
    )
    new_name: str = knob(label="Name", level="basic", help="The name of the converted adapter.")
    rank: int | None = knob(
        None,
        label="Rank",
        ge=1,
        le=4096,
        step=1,
        help="The rank of the result. Empty takes the smallest rank that loses at most 5 %.",
    )

    _new = field_validator("new_name")(check_display_name)
