"""The pre-flight check: what a run would do, whether it fits, how long it takes. Changes nothing.

Works on the loaded base, or, while that is busy in another process, on a skeleton without weights.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch

from backend.catalogue.learning_rate import rate_warning
from backend.catalogue.methods import method_of
from backend.engine.core import memory
from backend.engine.core.job_control import Control
from backend.engine.data import tokenization
from backend.engine.data.token_cache import TokenStore
from backend.engine.methods import peft_io
from backend.engine.methods.targets import count_trainable, matched
from backend.engine.planning import (
    advice,
    disk_space,
    memory_check,
    multiprocess_checks,
    proposal,
    reach,
    run_checks,
    surroundings,
)
from backend.engine.planning.surroundings import Surroundings
from backend.engine.runs import same_examples
from backend.engine.session import Session
from backend.engine.steps import packing, step_loss
from backend.engine.training.extension import total_steps
from backend.engine.training.precision_choice import StepTimes, Timings, without_timing
from backend.errors import (
    DataError,
    InvalidRequest,
    NotFound,
    Stopped,
    Unsupported,
    WorkbenchError,
)
from backend.library import Library
from backend.requests import Preflight, Train
from backend.requests.command_line import changed_fields
from backend.results import ModelFacts, PreflightReport, Problem, Proposal
from backend.results.training_layout import TrainingLayout
from backend.runs.run_store import Runs
from backend.settings import Settings

RECENT_RUNS = 50
ALIKE = 5
WIDE = 1_048_576
"""Tokens that hold every example: the most that a request allows."""


def check(
    request: Preflight,
    session: Session,
    *,
    facts: ModelFacts | None,
    runs: Runs,
    settings: Settings,
    control: Control | None = None,
    free: Callable[[torch.device], int] | None = None,
) -> PreflightReport:
    """Report how a run would go. What blocks it is listed in `problems`, never raised."""
    train = request.train
    timings, store = Timings(settings.timings_file), TokenStore(settings.tokens_dir)
    problems: list[Problem] = []
    notes: list[str] = []
    unsupported: list[str] = []
    _check_name(train, session.library, runs, problems)
    problems.extend(multiprocess_checks.problems(train, facts))
    around = _collect(problems, lambda: surroundings.find(session, facts))
    if around:
        train = train.with_rate(around.parameters)
        train, unsupported = run_checks.settled(train, around.model)
        problems.extend(run_checks.problems(train, around.facts, session.library))
        problems.extend(run_checks.about_optimizer(train, around.device))
    corpus = around and _collect(problems, lambda: _corpus(train, around, store, control))
    if corpus:
        _collect(problems, lambda: tokenization.require_filled(train, corpus.stats))
    config = around and _collect(problems, lambda: surroundings.configure(train, around))
    if config and around.facts:
        problems.extend(run_checks.refused_by_peft(config, around.facts))
    reached = matched(config, around.targets) if around and config else []
    trainable = count_trainable(config, reached) if config else 0
    layout: TrainingLayout = around.layout if around else "packed"
    packs = packing.training_packs(corpus.train, train, layout) if corpus else None
    seconds, source, warned, proposed = None, "", None, None
    if around and packs and config and not problems:
        took = _collect(problems, lambda: _duration(request, around, packs, runs, timings))
        seconds, source = took or (None, "")
        notes = [
            *multiprocess_checks.notes(train),
            *unsupported,
            *run_checks.about_layout(around.facts, packs),
            *advice.on(
                train,
                corpus.stats,
                around.parameters,
                context=around.context,
                batches=len(packs),
            ),
            *advice.on_base(around.facts),
        ]
        warned = rate_warning(train.rate, around.parameters)
    room = memory_check.Room((free or memory.available)(around.device) if around else 0)
    if around and corpus and config and packs:
        computed = _compute_precision(train, around, timings, packs.layout)
        shape, setup = memory_check.described(train, around, corpus, packs, config, computed)
        limits = proposal.room_for(shape, setup, room.free, context=around.context)
        proposed = proposal.propose(train, corpus.lengths, around.parameters, limits)
        room = memory_check.compare(
            train, shape, setup, room.free, longest=corpus.stats.longest, around=around,
            settings=settings,
        )  # fmt: skip
        notes, problems = [*notes, *room.notes], [*problems, *room.problems]
    elif around:
        proposed = _proposed_anyway(train, around, corpus, store, control)
    steps_to_do = total_steps(train, len(packs) if packs else 0)
    disk_needed, disk_free = disk_space.needed(trainable, steps_to_do), disk_space.free(runs.root)
    if full := disk_space.problem(disk_needed, disk_free):
        problems.append(full)
    if around and config:
        quantized = around.quantization != "none"
        left = reach.notes(train, around.targets, reached, around.parameters, quantized=quantized)
        notes = [*left, *notes]
    return PreflightReport(
        ready=not problems,
        problems=problems,
        notes=notes,
        warnings=(warned,) if warned else (),
        matched_modules=[target.name for target in reached],
        trainable_parameters=trainable,
        total_parameters=around.parameters if around else 0,
        reached_share=reach.share(reached, around.parameters) if around else 0.0,
        stats=corpus.stats if corpus else None,
        steps=steps_to_do,
        memory_bytes=room.needed,
        memory_available_bytes=room.free,
        seconds=seconds,
        seconds_from=source,
        disk_bytes=disk_needed,
        disk_free_bytes=disk_free,
        changed_settings=_changed_settings(train, proposed),
        proposal=proposed,
        mark=same_examples.mark_of(corpus) if corpus else None,
        memory_parts=list(room.parts),
        largest_token_budget=room.budget,
        smallest_change=room.change,
        smaller_base=room.smaller,
        layout=layout,
        padding_share=packs.padding_share if packs else 0.0,
    )


def _check_name(train: Train, library: Library, runs: Runs, problems: list[Problem]) -> None:
    try:
        library.require_free(train.name, runs.reserved_names())
        if train.start_from is not None:
            library.get(train.start_from)
    except (InvalidRequest, NotFound) as error:
        problems.append(Problem(what=error.what, cure=error.cure))


def _collect(problems: list[Problem], look: Any) -> Any:
    """Return what `look` returns; where it raises, add the error to `problems` and return None."""
    try:
        return look()
    except Stopped:
        raise
    except WorkbenchError as error:
        droppable = isinstance(error, DataError) and error.droppable
        problems.append(Problem(what=error.what, cure=error.cure, droppable=droppable))
        return None


def _corpus(
    train: Train, around: Surroundings, store: TokenStore, control: Control | None
) -> tokenization.Corpus:
    return tokenization.of_run(
        train, around.tokenizer, context=around.context, store=store, control=control,
        unfilled=True,
    )  # fmt: skip


def _proposed_anyway(
    train: Train,
    around: Surroundings,
    corpus: tokenization.Corpus | None,
    store: TokenStore,
    control: Control | None,
) -> Proposal | None:
    """Return what suits the examples where a run is not possible with the current settings.

    Without it a length or a batch that holds none of them could never be proposed anew. None where
    the examples cannot be read with any setting.
    """
    wide = train.model_copy(update={"max_length": WIDE, "tokens_per_step": WIDE})
    found = corpus or _collect([], lambda: _corpus(wide, around, store, control))
    if found is None:
        return None
    limits = proposal.Room(around.context)
    return proposal.propose(train, found.lengths, around.parameters, limits)


def _duration(
    request: Preflight,
    around: Surroundings,
    packs: packing.Packs,
    runs: Runs,
    timings: Timings,
) -> tuple[float | None, str]:
    """Estimate a run's seconds from past runs on this machine, or from one timed step."""
    train = request.train
    used = min(total_steps(train, len(packs)) * train.accumulation, len(packs))
    run_tokens = sum(packs.tokens(index) for index in range(used))
    speed = _past_speed(train, around, runs, packs.layout)
    if speed:
        return run_tokens / speed, "past runs on this machine"
    times = timings.get(train, around.facts, packs.layout) if around.facts else None
    if times is None and request.measure and around.session and around.session.slot is None:
        times = _step_times(train, around.session, packs, timings)
    if times is None:
        return None, ""
    precision = _compute_precision(train, around, timings, packs.layout)
    per_token = times.of(precision)
    if math.isinf(per_token):
        raise Unsupported(
            f"This base cannot be computed in {precision}.",
            cure="Set Compute precision to fp32 or auto.",
        )
    return per_token * run_tokens, "one timed step"


def _past_speed(
    train: Train, around: Surroundings, runs: Runs, layout: TrainingLayout
) -> float | None:
    """Return the median tokens per second of the newest comparable runs."""
    found: list[float] = []
    for run in runs.all()[:RECENT_RUNS]:
        try:
            request, status = run.request, run.status()
        except (WorkbenchError, OSError, ValueError):
            continue  # a damaged run is reported in Runs and does not block another one
        same = (
            request.base_fingerprint == around.fingerprint
            and status.quantization == around.quantization
            and (status.layout or "packed") == layout
            and request.train.processes == train.processes
            and method_of(request.train.adapter) is method_of(train.adapter)
            and request.train.gradient_checkpointing == train.gradient_checkpointing
            and abs(request.train.tokens_per_step - train.tokens_per_step)
            <= train.tokens_per_step // 2
        )
        if same and status.tokens_per_second and status.step >= 5:
            found.append(status.tokens_per_second)
        if len(found) == ALIKE:
            break
    return statistics.median(found) if found else None


def _step_times(
    train: Train, session: Session, packs: packing.Packs, timings: Timings
) -> StepTimes:
    """Time a step with a temporary adapter; the session is unchanged afterwards."""
    config = surroundings.configure(train, surroundings.find(session, None))
    probe = "ad_probe"
    checkpointing = train.gradient_checkpointing
    with session.keeping_active():
        try:
            peft = session.add(probe, peft_io.trainable(config))
            peft.set_adapter(probe)
            with step_loss.step_mode(
                session.base, checkpointing=checkpointing, layout=packs.layout
            ):
                return timings.measure(train, session.base, peft, packs)
        finally:
            session.drop(probe)
            session.settle()


def _compute_precision(
    train: Train, around: Surroundings, timings: Timings, layout: TrainingLayout
) -> str:
    """Return the compute precision of steps, as far as it is known before any was timed."""
    stored = around.facts.precision if around.facts is not None else "fp32"
    if settled := without_timing(train, stored, around.device):
        return settled[0]
    known = timings.get(train, around.facts, layout) if around.facts else None
    return known.faster if known else "fp32"


def _changed_settings(train: Train, proposed: Proposal | None) -> int:
    """Count the settings that are neither a default nor proposed; what the data is, is none."""
    fields = (name for name in changed_fields(train) if not name.startswith("columns."))
    changed = {*fields} - {"data", "placeholders"}
    suits = proposed.settings if proposed else {}
    return len(
        [name for name in changed if name not in suits or getattr(train, name) != suits[name]]
    )
