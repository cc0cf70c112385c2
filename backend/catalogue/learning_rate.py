"""Learning rates: schedule names, the usual rate by model size, and warnings for bad rates."""

from backend.results import Problem

USUAL_RATE = 0.003
LARGE_PARAMETERS = 50_000_000
LARGE_RATE = 2e-4
"""What most published LoRA runs on models of 100 million parameters or more use."""
HUGE_PARAMETERS = 20_000_000_000
HUGE_RATE = 1e-4
"""QLoRA (Dettmers et al. 2023, table 9) halves the rate for its models of 33 and 65 billion."""
USUAL_RATES = (USUAL_RATE, LARGE_RATE, HUGE_RATE)
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
    if parameters > HUGE_PARAMETERS:
        return HUGE_RATE
    return LARGE_RATE if parameters > LARGE_PARAMETERS else USUAL_RATE


def why_usual(parameters: int) -> str:
    """Say why the usual learning rate suits a base with this many parameters."""
    rate = f"Learning rate {usual_rate(parameters):g}"
    if parameters > HUGE_PARAMETERS:
        return f"{rate}: half of the usual rate, because bases this large need smaller updates."
    if parameters > LARGE_PARAMETERS:
        return f"{rate}: what most published LoRA runs use on bases of this size."
    return f"{rate}: a base this small learns well with large updates."


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
