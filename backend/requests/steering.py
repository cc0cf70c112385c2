"""What can be changed in a run while it goes on."""

from typing import Self

from pydantic import model_validator

from backend.fields import Request, knob
from backend.requests.watching import Prompts, watch_prompts


class Adjust(Request):
    """Change a run while it goes on, from its next step; what is left empty stays."""

    learning_rate: float | None = knob(
        None,
        label="Learning rate from now on",
        gt=0,
        le=1,
        help="How big corrections are from the next step; falls from there as the schedule says.",
    )
    total_steps: int | None = knob(
        None,
        label="Steps in all",
        unit="steps",
        ge=1,
        le=10_000_000,
        help="Where the run ends, counted from its start. More steps see the data more often.",
    )
    watch: Prompts | None = watch_prompts(
        "Questions that base and adapter answer now and at each test from here on.",
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("Nothing is to be changed. Fill in at least one field.")
        return self
