"""The base of all requests, and `knob`, which declares a field with label, help, unit and bounds.

An invalid value becomes one sentence that names the field by its label on the screen. Knows no
particular request.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.errors import InvalidRequest
from backend.refusals import refusal, shown

Level = Literal["basic", "advanced"]
MOST_STRENGTH = 1e7
"""Answers become unreadable far below this; far above it, sums of weights overflow."""
Strength = Annotated[float, Field(ge=-MOST_STRENGTH, le=MOST_STRENGTH, allow_inf_nan=False)]
Variant = list[tuple[str, Strength]]
"""Adapters by display name with their strengths; an empty list means the base alone."""

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
    """Declare a field with its label, help text and bounds.

    `lines` is the height of the text box on the screen; a list then has one entry per line.
    """
    extra: dict[str, Any] = {
        "label": label, "unit": unit, "level": level, "step": step, "lines": lines
    }  # fmt: skip
    return Field(default, description=help, json_schema_extra=extra, **bounds)


def check_display_name(name: str) -> str:
    """Return the name without surrounding spaces; raises ValueError if it is not allowed."""
    name = name.strip()
    if not DISPLAY_NAME.fullmatch(name):
        raise ValueError(
            f"An adapter name has 1 to {NAME_LENGTH} letters, digits, spaces, - or _, and starts "
            f"with a letter or digit; got {shown(name)}. Try 'pirate' or 'my adapter 2'."
        )
    return name


class Request(BaseModel):
    """Base of all requests: immutable, and a misspelt field is an error.

    Raises InvalidRequest with a readable sentence if a value is not allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            what, cure = refusal(type(self), error.errors())
            raise InvalidRequest(what, cure=cure) from None
