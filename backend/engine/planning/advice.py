"""What is worth a word before a run starts, though nothing keeps it from starting."""

from backend.catalogue.learning_rate import rate_warning, usual_rate
from backend.engine.data.dataset import FEWEST
from backend.requests import Train
from backend.results import DataStats

UNUSUAL = 5  # times the usual learning rate: worth a word, and may still be right


def on(train: Train, stats: DataStats, parameters: int) -> list[str]:
    """Return sentences about settings and data; `parameters` are the base's own numbers."""
    notes = []
    if train.start_from is not None:
        notes.append(
            f"It goes on from {train.start_from}: method, rank, alpha and targets are that "
            "adapter's, whatever the form says."
        )
    if stats.cut:
        notes.append(f"Longer than {train.longest} tokens, and cut: {_examples(stats.cut)}.")
    if stats.dropped:
        notes.append(f"Nothing to learn, and left out: {_examples(stats.dropped)}.")
    if stats.bad:
        notes.append(f"{stats.bad:,} of {stats.rows:,} rows cannot be used and are left out.")
    if stats.overlap:
        notes.append(f"Held out, too, and therefore not learned: {_examples(stats.overlap)}.")
    kinds = {group.kind: group.count for group in stats.groups}
    if double := kinds.get("duplicate"):
        notes.append(f"{double:,} of {stats.rows:,} rows are equal to earlier ones.")
    if special := kinds.get("special"):
        notes.append(
            f"In {special:,} of {stats.rows:,} rows there are special tokens, which the base reads "
            "as its own marks: right only where its chat template was written into them."
        )
    if train.tokens_per_step * train.accumulation >= stats.tokens:
        notes.append(
            f"A step takes all {stats.tokens:,} tokens that there are, so each epoch is one step."
        )
    if not stats.held_out:
        notes.append(_untested(train, stats))
    usual = usual_rate(parameters)
    above = UNUSUAL * usual < train.learning_rate
    if above and rate_warning(train.learning_rate, parameters) is None:
        notes.append(
            f"A learning rate of {train.learning_rate:g} is high for this base; "
            f"{usual:g} is a common start."
        )
    return notes


def _untested(train: Train, stats: DataStats) -> str:
    """Say that nothing is held out, and why, where somebody asked for it."""
    said = "No examples are held out, so there will be no test of what was learned"
    double = sum(group.count for group in stats.groups if group.kind == "duplicate")
    few = stats.rows - stats.bad - double < FEWEST
    if few and train.eval_share and not train.held_out:
        return f"{said}: fewer than {FEWEST} are different."
    return f"{said}."


def _examples(number: int) -> str:
    return f"{number:,} example{'' if number == 1 else 's'}"
