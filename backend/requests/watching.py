"""Test questions: prompts that base and adapter answer at each test of a run."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from backend.fields import knob

MOST_PROMPTS = 5


def _lines(value: Any) -> Any:
    """Read a text as one prompt per line."""
    if not isinstance(value, str):
        return value
    return [line.strip() for line in value.splitlines() if line.strip()]


Prompts = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=500)]],
    BeforeValidator(_lines),
]


def watch_prompts(help: str) -> Any:
    """Declare a field of test questions, one per line."""
    return knob(
        None,
        label="Test questions",
        unit="one per line",
        max_length=MOST_PROMPTS,
        lines=3,
        help=help,
    )
