"""Learning rates: schedule names, the usual rate by model size, and warnings for bad rates."""

from backend.results import Problem

USUAL_RATE = 0.003
LARGE_PARAMETERS = 50_000_000
LARGE_RATE = 2e-4
"""What most published LoRA runs on models of 100 million parameters or more use."""
# Measured on the starter (3.8 M parameters, 60 steps, two data sets): 0.01 learns as well as 0.003,
# 0.03 keeps most of the loss, and from 0.1 the loss never falls. Large models were not measured
# here: their bound is far above every published run.
BREAKS_FROM, LARGE_BREAKS_FROM = 0.03, 0.01
MOVES_NOTHING = 1 / 300


def schedule_name(scheduler: str) -> str:
    """Return the Transformers name of a schedule: its "constant" has no warm-up."""
    return "constant_with_warmup" if scheduler == "constant" else scheduler


def usual_rate(parameters: int) -> float:
    """Return the usual learning rate for a base with this many parameters."""
    return LARGE_RATE if parameters > LARGE_PARAMETERS else USUAL_RATE


def rate_warning(rate: float, parameters: int) -> Problem | None:
    """Return why a learning rate does not suit a base of this size; None if it does."""
    usual = usual_rate(parameters)
    cure = f"Try {usual:g}, which suits models of this size."
    if rate >= (LARGE_BREAKS_FROM if parameters > LARGE_PARAMETERS else BREAKS_FROM):
        what = f"At a learning rate of {rate:g} the model is likely to forget, not to learn."
    elif rate <= MOVES_NOTHING * usual:
        what = f"At a learning rate of {rate:g} the adapter will hardly change at all."
    else:
        return None
    return Problem(what=what, cure=cure)
