"""How a run's examples are laid out for the model, and the sentence that says so."""

from typing import Literal

TrainingLayout = Literal["packed", "rows", "single"]
"""Side by side in one row of tokens; each in a padded row of its own; each in a pass of its own."""
LAYOUTS: tuple[TrainingLayout, ...] = ("packed", "rows", "single")
"""From the fastest to the one that is right for any model."""


def words(layout: str) -> str:
    """Return a layout in a few words."""
    return {
        "rows": "one example per row",
        "single": "one example at a time",
    }.get(layout, "packed examples")


def sentence(layout: str, reason: str, padding_share: float = 0.0) -> str:
    """Say how the examples are laid out, why, and what it costs; empty for packed ones."""
    if layout == "rows":
        cost = f"; {share(padding_share)} of the computed positions are padding"
        cost = cost if padding_share else ""
        return f"Each example is trained in a row of its own, because {reason}{cost}."
    if layout == "single":
        return f"Each example is computed alone, because {reason}; several at once are faster."
    return ""


def share(value: float) -> str:
    """Return a share in percent."""
    if 0 < value < 0.01:
        return "less than 1 %"
    return f"{100 * value:.0f} %"
