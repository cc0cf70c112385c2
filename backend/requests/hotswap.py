"""Requests about the hot-swap slot: prepare it, change its adapter, leave; ways into it."""

from pydantic import field_validator

from backend.fields import NAME_LENGTH, Request, check_display_name, knob


class PrepareHotswap(Request):
    """Compile the model once around a slot that the chosen adapters then take in turn."""

    adapters: list[str] = knob(
        label="Adapters for the slot",
        level="basic",
        min_length=1,
        max_length=50,
        help="Plain LoRA adapters that shall share the slot; ranks and targets may differ.",
    )
    compile: bool = knob(
        True,
        label="Compile",
        help="May answer faster, after a while of preparation; how much is measured and shown. "
        "Off still swaps instantly.",
    )


class Hotswap(Request):
    """Put one of the prepared adapters into the slot; empty is the base alone."""

    adapter: str = knob(
        label="Adapter",
        level="basic",
        max_length=NAME_LENGTH,
        help="A prepared adapter; empty: the base.",
    )


class EndHotswap(Request):
    """Leave the slot: the session is as it was before it was prepared."""


class ConvertAdapter(Request):
    """Make a plain LoRA adapter out of another kind, so that it can be swapped and blended."""

    name: str = knob(
        label="Adapter", min_length=1, max_length=NAME_LENGTH, help="The adapter to convert."
    )
    new_name: str = knob(label="Name", level="basic", help="What the plain adapter is called.")
    rank: int | None = knob(
        None,
        label="Rank",
        ge=1,
        le=4096,
        step=1,
        help="How much it can hold. Empty takes the smallest that loses at most 5 %.",
    )

    _new = field_validator("new_name")(check_display_name)
