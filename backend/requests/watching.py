"""Prompts that are answered again and again while a run learns."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from backend.fields import knob

MOST_PROMPTS = 5


def _lines(value: Any) -> Any:
    """Read a text as one prompt a line."""
    if not isinstance(value, str):
        return value
    return [line.strip() for line in value.splitlines() if line.strip()]


Prompts = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=500)]],
    BeforeValidator(_lines),
]


def watch_prompts(help: str) -> Any:
    """Declare a field of prompts, one a line."""
    return knob(
        None,
        label="Watch prompts",
        unit="one a line",
        max_length=MOST_PROMPTS,
        lines=3,
        help=help,
    )
