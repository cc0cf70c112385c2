"""What every request is made of: a field that knows its label, help, unit and bounds.

A value that cannot work becomes one sentence that names the field as the screen does.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.errors import InvalidRequest
from backend.refusals import refusal, shown

Level = Literal["basic", "advanced"]
MOST_STRENGTH = 1e7
"""Far beyond what keeps an answer readable; much more, and sums of weights overflow."""
Strength = Annotated[float, Field(ge=-MOST_STRENGTH, le=MOST_STRENGTH, allow_inf_nan=False)]
Variant = list[tuple[str, Strength]]
"""Adapters by display name with their strengths; the empty list is the base alone."""

NAME_LENGTH = 40
DISPLAY_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9 _-]{{0,{NAME_LENGTH - 1}}}")


def knob(
    default: Any = ...,
    *,
    label: str,
    help: str,
    unit: str = "",
    level: Level = "advanced",
    step: float | None = None,
    lines: int | None = None,
    **bounds: Any,
) -> Any:
    """Declare a field together with what a person needs to know about it.

    `lines` is how many lines a text may have on the screen; a list is written one a line then.
    """
    extra: dict[str, Any] = {
        "label": label, "unit": unit, "level": level, "step": step, "lines": lines
    }  # fmt: skip
    return Field(default, description=help, json_schema_extra=extra, **bounds)


def check_display_name(name: str) -> str:
    """Return the name without outer spaces, or say why it cannot be one."""
    name = name.strip()
    if not DISPLAY_NAME.fullmatch(name):
        raise ValueError(
            f"An adapter name has 1 to {NAME_LENGTH} letters, digits, spaces, - or _, and starts "
            f"with a letter or digit; got {shown(name)}. Try 'pirate' or 'my adapter 2'."
        )
    return name


class Request(BaseModel):
    """Base of all requests: immutable, and a misspelt field is an error.

    Raises InvalidRequest, in a person's words, where a value cannot work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            what, cure = refusal(type(self), error.errors())
            raise InvalidRequest(what, cure=cure) from None
