"""The request that changes the settings of a run during training."""

from typing import Self

from pydantic import model_validator

from backend.fields import Request, knob
from backend.requests.watching import Prompts, watch_prompts


class Adjust(Request):
    """Change settings of the current run from its next step; empty fields stay as they are."""

    learning_rate: float | None = knob(
        None,
        label="Learning rate from now on",
        gt=0,
        le=1,
        help="The learning rate from the next step. The schedule then lowers it from this value.",
    )
    total_steps: int | None = knob(
        None,
        label="Total steps",
        unit="steps",
        ge=1,
        le=10_000_000,
        help="The step at which the run ends, counted from its start. More steps mean more epochs.",
    )
    watch: Prompts | None = watch_prompts(
        "Questions that the base and the adapter answer now and at each later test.",
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("There is nothing to change. Fill in at least one field.")
        return self
