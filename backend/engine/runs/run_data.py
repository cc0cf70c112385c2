"""The data of one segment of a run: its examples, its tests and its plan of steps.

A run goes on with the examples that it began with, or, where that is allowed, with other ones: then
the epochs that remain are made over those, from the step that was reached.
"""

from dataclasses import dataclass

from backend.engine.core.job_control import Control
from backend.engine.data import tokenization
from backend.engine.data.token_cache import TokenStore
from backend.engine.models.loading import Base
from backend.engine.runs import same_examples
from backend.engine.steps import packing
from backend.engine.steps.packing import Packs
from backend.engine.training import extension
from backend.errors import Unsupported
from backend.requests import Train
from backend.results.training_layout import TrainingLayout
from backend.runs.data_record import DataRecord, Restart
from backend.runs.run_records import RunStatus

EVALUATED_EXAMPLES = 200
PLAIN_TEXT = "text"
"""The name of the format of rows that are no conversation (`row_formats`)."""


@dataclass
class RunData:
    """The examples and the plan of a segment; `record` is kept with the run."""

    plan: extension.Plan
    held_out: Packs
    learned_share: float
    record: DataRecord
    has_answers: bool = True
    """False for plain text, where an exact match of a whole example says nothing."""
    changed: str = ""
    """What has changed since the last segment, and how the run goes on; empty if nothing has."""

    @property
    def restart(self) -> Restart | None:
        """The last change of the data."""
        return self.record.restart


def prepare(
    train: Train,
    before: RunStatus,
    base: Base,
    *,
    store: TokenStore,
    control: Control,
    step: int,
    changed_data: bool,
    layout: TrainingLayout = "packed",
) -> RunData:
    """Read the data of a run that continues from `step`.

    Raises DataError where it cannot be used, and DataChanged where it is not what the run began
    with, unless `changed_data` is set.
    """
    context = base.facts.context_length
    corpus = tokenization.of_run(
        train, base.tokenizer, context=context, store=store, control=control
    )
    mark = same_examples.mark_of(corpus)
    record = before.data or DataRecord(mark=mark)
    changed = same_examples.change(before, corpus, train, mark)
    if changed and not changed_data:
        raise same_examples.refusal(changed)
    if changed:
        known = before.data.mark if before.data else None
        tested_anew = known is None or known.held_out_examples != mark.held_out_examples
        restart = restart_at(step, before, train, is_tested_anew=tested_anew)
        changed = f"{changed} {words(restart)}"
        changes = (*record.changes, changed)
        record = record.model_copy(update={"restart": restart, "changes": changes})
    plan = extension.plan(corpus.train, train, before.extra_epochs, record.restart, layout)
    stretches = tuple((each.start, each.steps) for each in plan.stretches)
    tested = corpus.held_out[:EVALUATED_EXAMPLES]
    tests = packing.evaluation_packs(tested, train.tokens_per_step, layout)
    return RunData(
        plan=plan,
        held_out=tests,
        learned_share=corpus.stats.learned_tokens / max(corpus.stats.tokens, 1),
        record=record.model_copy(update={"mark": mark, "stretches": stretches}),
        has_answers=not (train.columns.text or corpus.stats.shape == PLAIN_TEXT),
        changed=changed,
    )


def restart_at(
    step: int, before: RunStatus, train: Train, *, is_tested_anew: bool = True
) -> Restart:
    """Return what remains of a run at a step, in epochs, to be made over other data.

    `before` is the run's status, already with the extension that is about to begin. Raises
    Unsupported where an earlier version did not record how far an extension was.
    """
    extras = before.extra_epochs
    known = (*before.data.stretches,) if before.data else ((0, before.total_steps),)
    if len(known) < 1 + len(extras):
        if before.data is None and step < before.total_steps:
            raise Unsupported(
                "This run was being extended by an earlier version, which did not record how far "
                "the extension was.",
                cure="Bring back the data as it was, or start a new run from its adapter.",
            )
        stretches = (*known, (step, 0))
        return Restart(
            step=step, epochs=extras[-1], extensions=len(extras), stretches=stretches,
            is_tested_anew=is_tested_anew,
        )  # fmt: skip
    earlier = before.data.restart if before.data else None
    if earlier is not None and (earlier.extensions < len(extras) or earlier.step > step):
        earlier = None  # it was in a segment before this one, or its steps are repeated
    start, steps = known[-1]
    limit = None if extras or train.max_steps is None else max(0, train.max_steps - step)
    begun, whole = start, extras[-1] if extras else train.epochs
    if earlier is not None:
        begun, whole = earlier.step, earlier.epochs
    bounded = limit is not None and train.max_steps == start + steps
    share = 1.0 if bounded else max(0.0, 1 - (step - begun) / max(start + steps - begun, 1))
    return Restart(
        step=step,
        epochs=0.0 if limit == 0 else whole * share,
        limit=limit,
        extensions=len(extras),
        stretches=(*known[:-1], (start, step - start)),
        is_tested_anew=is_tested_anew,
    )


def words(restart: Restart) -> str:
    """Say how a run goes on with other data."""
    epochs = f"{restart.epochs:.3g} epoch{'' if restart.epochs == 1 else 's'}"
    limit = f", at most {restart.limit:,} steps," if restart.limit else ""
    anew = " Base and adapter are tested on other examples from here." * restart.is_tested_anew
    return (
        f"The run goes on with the data as it is now from step {restart.step + 1:,}: the "
        f"{epochs} that remained{limit} begin at the start of the new data, in a new order. The "
        f"curve breaks here, and the run cannot be repeated from its settings.{anew}"
    )
