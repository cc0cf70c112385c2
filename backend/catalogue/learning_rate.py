"""Learning rates: how they change, which suits a base of which size, and which cannot work."""

from backend.results import Problem

USUAL_RATE = 0.003
LARGE_PARAMETERS = 50_000_000
LARGE_RATE = 2e-4
"""What most published LoRA runs on models from 100 million parameters use."""
# Measured on the starter (3.8 M parameters, 60 steps, two data sets): 0.01 learns as well as 0.003,
# 0.03 keeps most of the loss, from 0.1 the loss never falls. Large models were not measured here:
# their bound lies far above every published run.
BREAKS_FROM, LARGE_BREAKS_FROM = 0.03, 0.01
MOVES_NOTHING = 1 / 300


def schedule_name(scheduler: str) -> str:
    """Return what Transformers calls a schedule: its "constant" leaves the warm-up out."""
    return "constant_with_warmup" if scheduler == "constant" else scheduler


def usual_rate(parameters: int) -> float:
    """Return the learning rate that suits a base with so many parameters."""
    return LARGE_RATE if parameters > LARGE_PARAMETERS else USUAL_RATE


def rate_warning(rate: float, parameters: int) -> Problem | None:
    """Say why a learning rate cannot work on a base of this size, if it cannot."""
    usual = usual_rate(parameters)
    cure = f"Try {usual:g}, which suits models of this size."
    if rate >= (LARGE_BREAKS_FROM if parameters > LARGE_PARAMETERS else BREAKS_FROM):
        what = f"At a learning rate of {rate:g} the model is likely to forget rather than to learn."
    elif rate <= MOVES_NOTHING * usual:
        what = f"At a learning rate of {rate:g} the adapter will hardly change at all."
    else:
        return None
    return Problem(what=what, cure=cure)
