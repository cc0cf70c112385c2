"""What every request is made of: a field that knows its label, help, unit and bounds.

A value that cannot work becomes one sentence that names the field as the screen does.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.errors import InvalidRequest

Level = Literal["basic", "advanced"]
Strength = Annotated[float, Field(allow_inf_nan=False)]
Variant = list[tuple[str, Strength]]
"""Adapters by display name with their strengths; the empty list is the base alone."""

DISPLAY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,39}")


def knob(
    default: Any = ...,
    *,
    label: str,
    help: str,
    unit: str = "",
    level: Level = "advanced",
    step: float | None = None,
    **bounds: Any,
) -> Any:
    """Declare a field together with what a person needs to know about it."""
    extra: dict[str, Any] = {"label": label, "unit": unit, "level": level, "step": step}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


def check_display_name(name: str) -> str:
    """Return the name without outer spaces, or say why it cannot be one."""
    name = name.strip()
    if not DISPLAY_NAME.fullmatch(name):
        raise ValueError(
            f"An adapter name has 1 to 40 letters, digits, spaces, - or _, and starts with a "
            f"letter or digit; got {name!r}. Try 'pirate' or 'my adapter 2'."
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
            raise InvalidRequest(
                " ".join(_explain(type(self), e) for e in error.errors())
            ) from None


def _explain(kind: type[BaseModel], item: Any) -> str:
    """Turn one pydantic error into a sentence that names the field as the screen does."""
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    path = [str(part) for part in item["loc"]]
    label = _label(kind, path) or ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"{label} is not a setting of {kind.__name__}."
    if item["type"] == "missing":
        return f"{label} is missing."
    return f"{label}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}."


def _label(kind: type[BaseModel], path: list[str]) -> str:
    label = ""
    for part in path:
        field = kind.model_fields.get(part)
        if field is None:
            break
        extra = field.json_schema_extra
        label = str(extra.get("label", part)) if isinstance(extra, dict) else part
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            kind = field.annotation
    return label
