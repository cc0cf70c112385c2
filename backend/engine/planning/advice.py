"""Notes on a run's settings and data: worth knowing, but none of them blocks the run."""

from backend.catalogue.learning_rate import rate_warning, usual_rate
from backend.engine.data.dataset import FEWEST
from backend.requests import Train
from backend.results import DataStats, ModelFacts, RowKind

NOT_LEARNED: dict[RowKind, str] = {
    "no_thought": "Thoughts left out, because the base's chat template does not show them",
    "not_shown": "A turn, such as the system prompt, is left out by the base's chat template",
    "taught_end": "End of text added, because the chat template has no end of an answer",
}
SHOWN_COLUMNS = 8
UNUSUAL = 5  # times the usual learning rate: worth a note, but may still be right


def on(
    train: Train, stats: DataStats, parameters: int, *, context: int = 0, batches: int = 0
) -> list[str]:
    """Return notes on settings and data.

    `parameters` and `context` (in tokens) are the base's, `batches` those of the whole run.
    """
    notes = []
    longest = min(train.longest, context or train.longest)
    if train.start_from is not None:
        notes.append(
            f"Training continues from {train.start_from}: method, rank, alpha and targets come "
            "from that adapter, not from the form."
        )
    if stats.cut:
        notes.append(
            f"Cut because longer than {longest:,} tokens: {_examples(stats.cut)}, with "
            f"{_percent(stats.lost_share)} of the text to learn. They can be split instead."
        )
    if stats.dropped:
        notes.append(f"Left out because no token has a loss: {_examples(stats.dropped)}.")
    if stats.bad:
        notes.append(f"{stats.bad:,} of {stats.rows:,} rows cannot be used and are left out.")
    if stats.overlap:
        notes.append(f"Also held out, so not used for training: {_examples(stats.overlap)}.")
    kinds = {group.kind: group.count for group in stats.groups}
    if pieces := kinds.get("pieces"):
        notes.append(
            f"Split into pieces because longer than {longest:,} tokens: {_examples(pieces)}."
        )
    for kind, what in NOT_LEARNED.items():
        if count := kinds.get(kind):
            notes.append(f"{what}: {count:,} of {stats.rows:,} rows.")
    if left_out := [column.name for column in stats.columns if not column.use and column.rows]:
        notes.append(f"Columns left out: {_listed(left_out)}.")
    if double := kinds.get("duplicate"):
        notes.append(f"{double:,} of {stats.rows:,} rows are duplicates of earlier ones.")
    if special := kinds.get("special"):
        notes.append(
            f"{special:,} of {stats.rows:,} rows contain special tokens of the base, which it "
            "reads as control tokens. This is right only if its chat template wrote these rows."
        )
    notes.extend(_few_steps(train, stats, batches))
    if not stats.held_out:
        notes.append(_untested(train, stats))
    usual = usual_rate(parameters)
    above = UNUSUAL * usual < train.rate
    if above and rate_warning(train.rate, parameters) is None:
        notes.append(
            f"A learning rate of {train.rate:g} is high for this base; {usual:g} is a common start."
        )
    return notes


def _few_steps(train: Train, stats: DataStats, batches: int) -> list[str]:
    """Say where one step takes the whole data, or more than it. `batches` are those of the run."""
    epochs = train.epochs * train.accumulation / max(batches, 1)  # in a step
    if train.max_steps is not None or stats.tokens == 0 or batches < 1 or epochs < 0.99:
        return []
    if epochs < 1.01:
        return [f"One step takes all {stats.tokens:,} tokens of the data: each epoch is one step."]
    return [
        f"One step takes {epochs:.3g} times the whole data, {stats.tokens:,} tokens: a smaller "
        "accumulation or batch gives more steps."
    ]


def _untested(train: Train, stats: DataStats) -> str:
    """Say that nothing is held out, and why, if held-out examples were requested."""
    said = "No examples are held out, so the adapter is not tested on unseen examples"
    double = sum(group.count for group in stats.groups if group.kind == "duplicate")
    few = stats.rows - stats.bad - double < FEWEST
    if few and train.eval_share and not train.held_out:
        return f"{said}: the data has fewer than {FEWEST} different ones."
    return f"{said}."


def on_base(facts: ModelFacts | None) -> list[str]:
    """Return a note where an adapter changes only a part of the base."""
    if facts is None or not facts.untouched:
        return []
    return [f"Only the language model is adapted. Not changed: {'; '.join(facts.untouched)}."]


def _listed(columns: list[str]) -> str:
    shown = ", ".join(column[:40] for column in columns[:SHOWN_COLUMNS])
    more = len(columns) - SHOWN_COLUMNS
    return f"{shown} and {more:,} more" if more > 0 else shown


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"


def _examples(number: int) -> str:
    return f"{number:,} example{'' if number == 1 else 's'}"
