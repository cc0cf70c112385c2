"""How much of a base an adapter reaches, in sentences for the check before a run."""

from backend.engine.methods.adaptable import has_experts
from backend.engine.methods.target_choice import choose
from backend.engine.models.linear_layers import Target
from backend.requests import Train


def share(reached: list[Target], parameters: int) -> float:
    """Return the share of a model's parameters that are in the matched layers, 0 to 1."""
    return min(1.0, sum(each.numbers for each in reached) / parameters) if parameters else 0.0


def notes(
    train: Train,
    targets: list[Target],
    reached: list[Target],
    parameters: int,
    *,
    quantized: bool,
) -> list[str]:
    """Return what is left out of the adapter and why, and how much of a mixture it reaches."""
    left_out = [] if train.start_from else choose(train.adapter, targets, quantized=quantized).notes
    if not has_experts(targets):
        return left_out
    percent = f"{100 * share(reached, parameters):.2g} % of the model's parameters"
    if has_experts(reached):
        return [f"The adapter reaches {percent}, experts included.", *left_out]
    return [f"Experts stay frozen: the adapter reaches {percent}.", *left_out]
