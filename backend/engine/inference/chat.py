"""Answers and comparisons of several variants, in as few batches as possible.

Rows whose variant is the base or plain adapters share a batch where the base is computed from its
weights (`direct_decoding`). Elsewhere a batch takes rows with one plain adapter, at one strength of
each. Other variants (such as DoRA) are computed one after the other. Uses the session only to
activate variants.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from backend import requests as rq
from backend import results as rs
from backend.engine.core.job_control import Control
from backend.engine.inference import (
    batched_decoding,
    direct_decoding,
    generate,
    sampling,
    text_streaming,
    ways,
)
from backend.engine.inference.direct_model import DirectModel
from backend.engine.inference.kept_answers import KeptAnswers
from backend.engine.inference.prompts import encode_prompt, end_tokens, room_for
from backend.engine.inference.row_cache import BLOCK
from backend.engine.inference.rows import Row
from backend.engine.session import ActiveIds, Session

MAX_ROWS = 16
OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Settings:
    """Generation settings; the same for all rows except for the seed."""

    max_new_tokens: int
    temperature: float


@dataclass(frozen=True)
class Question:
    """One requested answer."""

    messages: list[rq.Message]
    variant: ActiveIds
    seed: int
    prompt: list[int] | None = None
    """The prompt as token ids, used instead of a conversation."""


@dataclass
class _Group:
    """Questions that share a batch; `strengths` of its adapters, None for a question alone.

    `direct` computes them where the base allows it; then each row has strengths of its own.
    """

    members: list[int]
    strengths: dict[str, float] | None
    direct: DirectModel | None = None


def chat(session: Session, request: rq.Chat, control: Control, kept: KeptAnswers) -> rs.Answer:
    """Answer one conversation with one variant."""
    question = Question(request.messages, session.resolve(request.variant), request.seed)
    found, _ = answer(session, [question], _settings(request), control, _single(control), kept)
    return found[0]


def side_by_side(
    session: Session, request: rq.SideBySide, control: Control, kept: KeptAnswers
) -> rs.SideAnswers:
    """Answer one conversation per variant, streamed together."""
    variants = [session.resolve(variant) for variant in request.variants]
    pairs = zip(request.conversations, variants, strict=True)
    questions = [
        Question(messages, variant, request.seed_of(column))
        for column, (messages, variant) in enumerate(pairs)
    ]
    answers, batched = answer(
        session, questions, _settings(request), control, control.piece_of, kept
    )
    return rs.SideAnswers(answers=answers, batched=batched)


def compare(session: Session, request: rq.Compare, control: Control) -> rs.Answers:
    """Answer the same prompts with several variants."""
    variants = [session.resolve(variant) for variant in request.variants]
    questions = [
        Question([rq.Message(role="user", content=prompt)], variant, request.seed)
        for variant in variants
        for prompt in request.prompts
    ]
    found, _ = answer(session, questions, _settings(request), control, _nobody)
    control.check_stop()  # an incomplete comparison is not returned
    width = len(request.prompts)
    texts = [each.text for each in found]
    return rs.Answers(answers=[texts[i : i + width] for i in range(0, len(texts), width)])


def answer(
    session: Session,
    questions: Sequence[Question],
    settings: Settings,
    control: Control,
    on_text: OnText,
    kept: KeptAnswers | None = None,
) -> tuple[list[rs.Answer], int]:
    """Answer all questions; return the answers and how many shared a batch with another.

    `on_text` is called with a question's number and complete words as they are decoded. `kept`
    holds earlier answers that these may go on from. Raises InvalidRequest before anything is
    computed where a conversation fills the model's context.
    """
    prompts = [_prompt(session, each) for each in questions]
    rooms = [room_for(session.base, ids.shape[1], settings.max_new_tokens) for ids in prompts]
    found: dict[int, rs.Answer] = {}
    batched = 0
    for group in _groups(session, questions, [*map(_longest, prompts, rooms)]):
        if control.stop_requested:
            break
        rows = [
            _row(session, i, questions[i], prompts[i], rooms[i], settings, group, on_text)
            for i in group.members
        ]
        batched += _run(session, group, rows, questions, control, kept)
        for number, row in zip(group.members, rows, strict=True):
            found[number] = _answer_of(session, row)
    nothing = rs.Answer(text="", tokens=0, seconds=0.0, stopped=True)
    return [found.get(number, nothing) for number in range(len(questions))], batched


def _longest(prompt: torch.Tensor, room: int) -> int:
    return int(prompt.shape[1]) + room


def _prompt(session: Session, question: Question) -> torch.Tensor:
    if question.prompt is not None:
        return torch.tensor([question.prompt], device=session.base.device)
    ours = any(session.was_made_here(id) for id, _ in question.variant)
    return encode_prompt(session.base, question.messages, as_in_training=ours)


def _groups(
    session: Session, questions: Sequence[Question], lengths: Sequence[int]
) -> list[_Group]:
    """Group questions into batches, the largest first; questions that cannot share come last."""
    direct = _direct(session)
    numbers = list(range(len(questions)))
    if direct is None:
        return _batches(session, questions, numbers)
    fitting = [
        number
        for number in numbers
        if _is_plain(session, questions[number].variant)
        and lengths[number] <= (direct.longest or lengths[number])
    ]
    shares = len(fitting) > 1 and (_is_full_precision(session) or ways.is_exact(direct))
    size = MAX_ROWS if shares else 1
    parts = [fitting[start : start + size] for start in range(0, len(fitting), size)]
    others = [number for number in numbers if number not in fitting]
    return [_Group(part, {}, direct) for part in parts] + _batches(session, questions, others)


def _is_full_precision(session: Session) -> bool:
    return session.base.dtype == torch.float32


def _direct(session: Session) -> DirectModel | None:
    if session.slot is not None:
        return None
    with session.using_ids([]):
        return ways.direct(session.base)


def _batches(
    session: Session, questions: Sequence[Question], numbers: Sequence[int]
) -> list[_Group]:
    """Group questions that the model's own modules answer.

    In half precision each is alone: a batch rounds in another way, and every tenth token would have
    to be computed once more.
    """
    shared: list[_Group] = []
    alone: list[_Group] = []
    batchable = session.slot is None and _is_full_precision(session)
    batchable = batchable and bool(numbers) and ways.of(session.base) is ways.Way.BATCH
    for number in numbers:
        question = questions[number]
        if not batchable or not _is_single(session, question.variant):
            alone.append(_Group([number], None))
            continue
        wanted = dict(question.variant)
        for group in shared:
            assert group.strengths is not None
            same = all(group.strengths.get(id, s) == s for id, s in wanted.items())
            if same and len(group.members) < MAX_ROWS:
                group.members.append(number)
                group.strengths.update(wanted)
                break
        else:
            shared.append(_Group([number], wanted))
    return sorted(shared, key=lambda group: -len(group.members)) + alone


def _is_single(session: Session, variant: ActiveIds) -> bool:
    return len(variant) <= 1 and _is_plain(session, variant)


def _is_plain(session: Session, variant: ActiveIds) -> bool:
    """Tell whether a variant is the base or has only adapters that a row can have for itself."""
    peft = session.peft
    return all(
        peft is not None and session.is_loaded(id) and batched_decoding.fits_batch(peft, id)
        for id, _ in variant
    )


def _row(
    session: Session,
    number: int,
    question: Question,
    prompt: torch.Tensor,
    room: int,
    settings: Settings,
    group: _Group,
    on_text: OnText,
) -> Row:
    own = question.variant[0][0] if question.variant else batched_decoding.BASE_ROW
    return Row(
        prompt=prompt[0].tolist(),
        adapter=own if group.strengths is not None else None,
        sampler=sampling.Sampler(settings.temperature, question.seed),
        room=room,
        on_text=lambda text: on_text(number, text),
        words=text_streaming.TextStream(session.base.tokenizer),
    )


def _answer_of(session: Session, row: Row) -> rs.Answer:
    """Return a row's answer; a row that neither ended nor filled its room was stopped."""
    last = row.tokens[-1] if row.tokens else None
    over = last in end_tokens(session.base) or len(row.tokens) >= row.room
    return rs.Answer(
        text=session.base.tokenizer.decode(row.tokens, skip_special_tokens=True).strip(),
        tokens=len(row.tokens),
        seconds=row.seconds,
        stopped=not over,
    )


def _run(
    session: Session,
    group: _Group,
    rows: list[Row],
    questions: Sequence[Question],
    control: Control,
    kept: KeptAnswers | None,
) -> int:
    """Answer one group, and restore the active set afterwards; return how many rows were batched.

    Rows are answered in turn where the base does not allow an adapter for each row of a batch.
    """
    if group.direct is not None:
        variants = [questions[number].variant for number in group.members]
        _run_directly(session, group.direct, rows, variants, control, kept)
        return len(rows) if len(rows) > 1 else 0
    if group.strengths is not None:
        try:
            _run_together(session, list(group.strengths.items()), rows, control)
        except batched_decoding.DoesNotFit:
            ways.in_turn(session.base)
        else:
            return len(rows) if len(rows) > 1 else 0
    for number, row in zip(group.members, rows, strict=True):
        with session.using_ids(questions[number].variant):
            _run_alone(session, row, control)
    return 0


def _run_directly(
    session: Session,
    model: DirectModel,
    rows: list[Row],
    variants: Sequence[ActiveIds],
    control: Control,
    kept: KeptAnswers | None,
) -> None:
    """Answer rows from the base's weights; keep their caches for a next turn.

    The weights of a paused run's adapter change before the next answer, so nothing is kept then.
    """
    if session.learning is not None:
        kept = None
    ready = []
    for row, variant in zip(rows, variants, strict=True):
        with session.using_ids(variant):  # sets the adapters' strengths
            changes = DirectModel(session.base).changes([id for id, _ in variant])
        cache = model.cache(len(row.prompt) + min(row.room, BLOCK))
        ready.append(direct_decoding.DirectRow(row, changes, cache))
        if kept is not None:
            kept.lend(tuple(variant), ready[-1])
    exact = not _is_full_precision(session)  # else these rows do not share a batch
    direct_decoding.answer_rows(model, ready, lambda: control.stop_requested, exact=exact)
    for each, variant in zip(ready, variants, strict=True):
        if kept is not None and each.row.tokens:
            kept.put(tuple(variant), each)


def _run_together(session: Session, wanted: ActiveIds, rows: list[Row], control: Control) -> None:
    """Answer rows in one batch, each with its own adapter at the strength in `wanted`."""
    with session.using_ids(wanted):
        peft = session.peft
        routing = batched_decoding.Routing(peft, rows) if peft is not None else None
        with session.using_ids([]):
            batched_decoding.answer_rows(
                session.base, rows, routing, lambda: control.stop_requested
            )


def _run_alone(session: Session, row: Row, control: Control) -> None:
    """Answer one question with what is active now, in the way that is right for the base."""
    base, started = session.base, time.monotonic()
    way = ways.of(base) if session.slot is None else ways.Way.OWN_CACHE
    if way in (ways.Way.BATCH, ways.Way.ALONE):
        batched_decoding.answer_rows(base, [row], None, lambda: control.stop_requested)
        return
    if way is ways.Way.OWN_CACHE:
        row.tokens = generate.answer_plainly(
            session.model,
            base,
            torch.tensor([row.prompt], device=base.device),
            room=row.room,
            sampler=row.sampler,
            on_text=row.on_text,
            should_stop=lambda: control.stop_requested,
        )
    else:
        ends = end_tokens(base)
        generate.answer_whole(
            base,
            row.prompt,
            sampler=row.sampler,
            on_token=lambda token: row.take(token, ends),
            should_stop=lambda: control.stop_requested,
        )
    row.seconds = time.monotonic() - started


def _settings(request: rq.Chat | rq.SideBySide | rq.Compare) -> Settings:
    return Settings(request.max_new_tokens, request.temperature)


def _single(control: Control) -> OnText:
    return lambda _, text: control.piece(text)


def _nobody(number: int, text: str) -> None:
    """Ignore streamed text."""
