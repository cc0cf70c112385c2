"""A look ahead: what a run would do, and what the model would see of the data. Changes nothing.

Works on the loaded base, or beside a busy one on a skeleton without weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backend.engine import (
    adapters,
    attention,
    base_folder,
    base_model,
    data,
    estimate,
    memory,
    packing,
    sharing,
    steps,
    tokens,
)
from backend.engine.precision import StepTimes, Timings
from backend.engine.session import Session
from backend.engine.training import total_steps
from backend.errors import InvalidRequest, NotFound, WorkbenchError
from backend.learning_rate import rate_warning, usual_rate
from backend.library import Library
from backend.methods import method_of
from backend.requests import Preflight, PreviewData, Train
from backend.results import DataPreview, Example, PreflightReport, Problem
from backend.runs import Runs
from backend.sizes import size_text

SHOWN_LENGTH = 20_000
RECENT_RUNS = 50
UNUSUAL = 5  # times the usual learning rate: worth a word, and may still be right


@dataclass
class Surroundings:
    """The base as far as a look ahead needs it; `session` only where its weights are there."""

    model: torch.nn.Module
    tokenizer: Any
    context: int
    name: str
    fingerprint: str
    device: torch.device
    session: Session | None

    @property
    def quantization(self) -> str:
        return "none" if self.session is None else self.session.base.facts.quantization

    @property
    def parameters(self) -> int:
        """The base's own numbers, whatever adapters are on it."""
        if self.session is not None:
            return self.session.base.facts.parameters
        return sum(p.numel() for p in self.model.parameters())


def check(
    request: Preflight, session: Session, *, base_path: str | None, runs: Runs, timings: Timings
) -> PreflightReport:
    """Report how a run would go. What keeps it from starting is in `problems`, never raised."""
    train = request.train
    problems: list[Problem] = []
    notes: list[str] = []
    _check_name(train, session.library, runs, problems)
    problems.extend(sharing.problems(train, session.facts))
    around = _collect(problems, lambda: _surroundings(session, base_path))
    corpus = around and _collect(problems, lambda: _corpus(train, around))
    config = around and _collect(problems, lambda: _configure(train, around))
    matched = (
        adapters.matched(config, adapters.linear_layers(around.model)) if around and config else []
    )
    trainable = adapters.count_trainable(config, matched) if config else 0
    packs = packing.training_packs(corpus.train, train) if corpus else None
    seconds, source, warned = None, "", None
    if around and packs and config and not problems:
        seconds, source = _duration(request, around, packs, runs, timings)
        notes = [*sharing.notes(train), *_notes(train, corpus, around)]
        warned = rate_warning(train.learning_rate, around.parameters)
    memory_needed: estimate.Estimate | None = None
    budget, needed, change = 0, 0, None
    free = memory.available(around.device) if around else 0
    if around and corpus and config and packs:
        shape, setup = _run_setup(train, around, corpus, packs, config, timings)
        setup = estimate.settle(shape, setup, free)
        memory_needed = estimate.estimate(shape, setup)
        budget = estimate.largest_budget(shape, setup, free)
        needed = sharing.memory_bytes(train, around.device.type, memory_needed)
        if needed > free and train.processes > 1:
            problems.append(sharing.too_big(train, needed, free))
        elif needed > free:
            change = estimate.smallest_change(shape, setup, free, longest=corpus.stats.longest)
            problems.append(_too_big(needed, free, change))
    return PreflightReport(
        ready=not problems,
        problems=problems,
        notes=notes,
        warnings=(warned,) if warned else (),
        matched_modules=[target.name for target in matched],
        trainable_parameters=trainable,
        total_parameters=around.parameters if around else 0,
        stats=corpus.stats if corpus else None,
        steps=total_steps(train, len(packs) if packs else 0),
        memory_bytes=needed,
        memory_available_bytes=free,
        seconds=seconds,
        seconds_from=source,
        memory_parts=list(memory_needed.parts) if memory_needed and train.processes == 1 else [],
        largest_token_budget=budget,
        smallest_change=change,
    )


def preview(request: PreviewData, session: Session, *, base_path: str | None) -> DataPreview:
    """Show the first examples as the model would see them, learned tokens marked."""
    around = _surroundings(session, base_path)
    source = data.read(request.data, eval_share=0.0, seed=0)
    shown = source.train[: request.rows]
    stats = None
    if not source.problems:
        stats = tokens.tokenise(source, around.tokenizer, max_length=request.max_length).stats
    encoded = tokens.encode(shown, around.tokenizer, request.max_length)
    return DataPreview(
        rows=source.rows,
        problems=source.problems,
        stats=stats,
        examples=[_example(document, around.tokenizer) for document in encoded],
    )


def _surroundings(session: Session, base_path: str | None) -> Surroundings:
    if session.facts is not None:
        base, facts = session.base, session.base.facts
        return Surroundings(
            base.model, base.tokenizer, facts.context_length, facts.source, facts.fingerprint,
            base.device, session,
        )  # fmt: skip
    if base_path is None:
        raise NotFound("No base model is loaded.", cure="Load one first: the starter is quick.")
    folder = Path(base_path)
    model = base_folder.skeleton(folder)
    context = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    device = base_model.choose_device("auto")
    tokenizer = base_folder.read_tokenizer(folder)
    return Surroundings(model, tokenizer, context, folder.name, "", device, None)


def _check_name(train: Train, library: Library, runs: Runs, problems: list[Problem]) -> None:
    try:
        library.require_free(train.name, runs.reserved_names())
        if train.start_from is not None:
            library.get(train.start_from)
    except (InvalidRequest, NotFound) as error:
        problems.append(Problem(what=error.what, cure=error.cure))


def _collect(problems: list[Problem], look: Any) -> Any:
    """Return what `look` finds, or note why it found nothing."""
    try:
        return look()
    except WorkbenchError as error:
        problems.append(Problem(what=error.what, cure=error.cure))
        return None


def _corpus(train: Train, around: Surroundings) -> tokens.Corpus:
    source = data.read(train.data, eval_share=train.eval_share, seed=train.seed)
    longest = min(train.longest, around.context) if around.context else train.longest
    return tokens.tokenise(source, around.tokenizer, max_length=longest)


def _configure(train: Train, around: Surroundings) -> Any:
    layers = adapters.linear_layers(around.model)
    if train.start_from is not None and around.session is not None:
        info = around.session.library.get(train.start_from)
        return adapters.read_config(around.session.library.folder(info.id))
    return adapters.configure(train.adapter, layers, around.name)


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
    speed = _past_speed(train, around, runs)
    if speed:
        return run_tokens / speed, "past runs on this machine"
    if not request.measure or around.session is None or around.session.slot is not None:
        return None, ""
    times = _step_times(train, around.session, packs, timings)
    per_token = times.bf16 if _computes_in_bf16(train, times) else times.fp32
    return per_token * run_tokens, "one timed step"


def _past_speed(train: Train, around: Surroundings, runs: Runs) -> float | None:
    """Return the tokens per second of the newest comparable run."""
    for run in runs.all()[:RECENT_RUNS]:
        request, status = run.request, run.status()
        same = (
            request.base_fingerprint == around.fingerprint
            and status.quantization == around.quantization
            and request.train.processes == train.processes
            and method_of(request.train.adapter) is method_of(train.adapter)
            and request.train.gradient_checkpointing == train.gradient_checkpointing
            and abs(request.train.tokens_per_step - train.tokens_per_step)
            <= train.tokens_per_step // 2
        )
        if same and status.tokens_per_second and status.step >= 5:
            return status.tokens_per_second
    return None


def _step_times(
    train: Train, session: Session, packs: packing.Packs, timings: Timings
) -> StepTimes:
    """Time a step with a throw-away adapter; the session is as before afterwards."""
    known = timings.get(train, session.base)
    if known is not None:
        return known
    config = adapters.configure(train.adapter, session.layers(), session.base.model.name_or_path)
    probe = "ad_probe"
    try:
        peft = session.add(probe, config)
        peft.set_adapter(probe)
        with steps.step_mode(session.base, checkpointing=train.gradient_checkpointing):
            return timings.measure(train, session.base, peft, packs)
    finally:
        session.drop(probe)
        session.settle()


def _computes_in_bf16(train: Train, times: StepTimes) -> bool:
    return (times.faster if train.precision == "auto" else train.precision) == "bf16"


def _notes(train: Train, corpus: tokens.Corpus, around: Surroundings) -> list[str]:
    stats, notes = corpus.stats, []
    if stats.cut:
        notes.append(f"{stats.cut} examples are longer than {train.longest} tokens and are cut.")
    if stats.dropped:
        notes.append(f"{stats.dropped} examples have nothing to learn and are left out.")
    if not stats.held_out:
        notes.append("No examples are held out, so there will be no test of what was learned.")
    usual = usual_rate(around.parameters)
    above = UNUSUAL * usual < train.learning_rate
    if above and rate_warning(train.learning_rate, around.parameters) is None:
        notes.append(
            f"A learning rate of {train.learning_rate:g} is high for this base; "
            f"{usual:g} is a common start."
        )
    return notes


def _run_setup(
    train: Train,
    around: Surroundings,
    corpus: tokens.Corpus,
    packs: packing.Packs,
    config: Any,
    timings: Timings,
) -> tuple[estimate.Shape, estimate.Setup]:
    """Return the sizes that decide about memory; a base that is not loaded counts as fp32."""
    shape = estimate.Shape.of(around.model, around.parameters)
    targets = tuple(adapters.matched(config, list(shape.linear)))
    facts = around.session.base.facts if around.session else None
    stats = corpus.stats
    return shape, estimate.Setup(
        stored=facts.precision if facts else "fp32",
        quantization=around.quantization,
        double_quant=facts.double_quant if facts else False,
        computed=_compute_precision(train, around, timings),
        device=around.device.type,
        targets=targets,
        trainable=adapters.count_trainable(config, list(targets)),
        uses_dora=bool(config.use_dora),
        tokens=max(map(packs.tokens, range(len(packs)))),
        learned_share=stats.learned_tokens / max(stats.tokens, 1),
        checkpointing=train.gradient_checkpointing,
        attention_apart=attention.could_use(around.model),
    )


def _compute_precision(train: Train, around: Surroundings, timings: Timings) -> str:
    """Return what steps will compute in, as far as that is known before one was timed."""
    if around.session is not None and around.session.base.facts.precision != "fp32":
        return "bf16"
    if train.precision != "auto":
        return train.precision
    known = timings.get(train, around.session.base) if around.session else None
    return known.faster if known else "fp32"


def _too_big(needed: int, free: int, change: dict[str, int | bool] | None) -> Problem:
    cure = (
        f"It fits with {estimate.words(change)}."
        if change
        else "Load a smaller base, or this one quantised to 4 bits."
    )
    return Problem(
        what=f"The run needs about {size_text(needed)}, and {size_text(free)} are free.",
        cure=cure,
    )


def _example(document: tokens.Tokens, tokenizer: Any) -> Example:
    """Join neighbouring tokens that are both learned, or both not, into pieces of text."""
    pieces: list[tuple[str, bool]] = []
    start = 0
    flags = document.learned.tolist()
    for index in range(1, len(flags) + 1):
        if index == len(flags) or flags[index] != flags[start]:
            text = tokenizer.decode(document.ids[start:index].tolist())
            pieces.append((text[:SHOWN_LENGTH], flags[start]))
            start = index
    return Example(pieces=pieces, tokens=len(document), cut=document.cut)
