"""Answers, comparisons and scores of several variants, in as few batches as possible.

Rows whose variant is the base or one plain adapter share a batch. An adapter has one strength per
batch, so the same adapter at another strength needs another batch. Other variants (several
adapters, DoRA) are computed one after the other. Uses the session only to activate variants.
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
    generate,
    sampling,
    scoring,
    text_streaming,
    ways,
)
from backend.engine.inference.prompts import encode_prompt, end_tokens, room_for
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
    """Questions that share a batch; `strengths` of its adapters, None for a question alone."""

    members: list[int]
    strengths: dict[str, float] | None


def chat(session: Session, request: rq.Chat, control: Control) -> rs.Answer:
    """Answer one conversation with one variant."""
    question = Question(request.messages, session.resolve(request.variant), request.seed)
    found, _ = answer(session, [question], _settings(request), control, _single(control))
    return found[0]


def side_by_side(session: Session, request: rq.SideBySide, control: Control) -> rs.SideAnswers:
    """Answer one conversation per variant, streamed together."""
    variants = [session.resolve(variant) for variant in request.variants]
    pairs = zip(request.conversations, variants, strict=True)
    questions = [
        Question(messages, variant, request.seed_of(column))
        for column, (messages, variant) in enumerate(pairs)
    ]
    answers, batched = answer(session, questions, _settings(request), control, control.piece_of)
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


def score(session: Session, request: rq.Score, control: Control) -> rs.Scores:
    """Score texts under several variants, one text at a time, so that scores are reproducible."""
    found = []
    for variant in request.variants:
        with session.using(variant):
            rows = []
            for text in request.texts:
                control.check_stop()
                rows.append(scoring.score_tokens(session.model, session.base, text))
        found.append(rows)
    scores = rs.Scores(
        scores=[[each.total for each in rows] for rows in found],
        tokens=[len(each.each) for each in found[0]],
    )
    return _with_pieces(session, scores, found) if request.per_token else scores


def next_tokens(session: Session, request: rq.NextToken, control: Control) -> rs.NextTokens:
    """Return the most likely next tokens under several variants."""
    rows = []
    for variant in [session.resolve(each) for each in request.variants]:
        control.check_stop()
        with session.using_ids(variant):
            rows.append(scoring.next_token_chances(session.model, session.base, request.prompt))
    chances = torch.stack(rows)
    likeliest = chances.amax(dim=0).topk(min(request.top, chances.shape[1])).indices.tolist()
    return rs.NextTokens(
        words=[text_streaming.visible(session.base.tokenizer, token) for token in likeliest],
        chances=chances[:, likeliest].tolist(),
    )


def answer(
    session: Session,
    questions: Sequence[Question],
    settings: Settings,
    control: Control,
    on_text: OnText,
) -> tuple[list[rs.Answer], int]:
    """Answer all questions; return the answers and how many shared a batch with another.

    `on_text` is called with a question's number and complete words as they are decoded. Raises
    InvalidRequest before anything is computed where a conversation fills the model's context.
    """
    prompts = [_prompt(session, each) for each in questions]
    rooms = [room_for(session.base, ids.shape[1], settings.max_new_tokens) for ids in prompts]
    found: dict[int, rs.Answer] = {}
    batched = 0
    for group in _groups(session, questions):
        if control.stop_requested:
            break
        rows = [
            _row(session, i, questions[i], prompts[i], rooms[i], settings, group, on_text)
            for i in group.members
        ]
        batched += _run(session, group, rows, questions, control)
        for number, row in zip(group.members, rows, strict=True):
            found[number] = _answer_of(session, row)
    nothing = rs.Answer(text="", tokens=0, seconds=0.0, stopped=True)
    return [found.get(number, nothing) for number in range(len(questions))], batched


def _prompt(session: Session, question: Question) -> torch.Tensor:
    if question.prompt is not None:
        return torch.tensor([question.prompt], device=session.base.device)
    ours = any(session.was_made_here(id) for id, _ in question.variant)
    return encode_prompt(session.base, question.messages, as_in_training=ours)


def _groups(session: Session, questions: Sequence[Question]) -> list[_Group]:
    """Group questions into batches, the largest first; questions that cannot share come last."""
    shared: list[_Group] = []
    alone: list[_Group] = []
    batchable = session.slot is None and ways.of(session.base) is ways.Way.BATCH
    for number, question in enumerate(questions):
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
    if not variant:
        return True
    peft = session.peft
    if len(variant) != 1 or peft is None or not session.is_loaded(variant[0][0]):
        return False
    return batched_decoding.fits_batch(peft, variant[0][0])


def _row(
    session: Session,
    number: int,
    question: Question,
    prompt: torch.Tensor,
    room: int,
    settings: Settings,
    group: _Group,
    on_text: OnText,
) -> batched_decoding.Row:
    own = question.variant[0][0] if question.variant else batched_decoding.BASE_ROW
    return batched_decoding.Row(
        prompt=prompt[0].tolist(),
        adapter=own if group.strengths is not None else None,
        sampler=sampling.Sampler(settings.temperature, question.seed),
        room=room,
        on_text=lambda text: on_text(number, text),
        words=text_streaming.TextStream(session.base.tokenizer),
    )


def _answer_of(session: Session, row: batched_decoding.Row) -> rs.Answer:
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
    rows: list[batched_decoding.Row],
    questions: Sequence[Question],
    control: Control,
) -> int:
    """Answer one group, and restore the active set afterwards; return how many rows were batched.

    Rows are answered in turn where the base does not allow an adapter for each row of a batch.
    """
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


def _run_together(
    session: Session, wanted: ActiveIds, rows: list[batched_decoding.Row], control: Control
) -> None:
    """Answer rows in one batch, each with its own adapter at the strength in `wanted`."""
    with session.using_ids(wanted):
        peft = session.peft
        routing = batched_decoding.Routing(peft, rows) if peft is not None else None
        with session.using_ids([]):
            batched_decoding.answer_rows(
                session.base, rows, routing, lambda: control.stop_requested
            )


def _run_alone(session: Session, row: batched_decoding.Row, control: Control) -> None:
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


def _with_pieces(
    session: Session, scores: rs.Scores, found: list[list[scoring.TextScore]]
) -> rs.Scores:
    """Add the log-probability of each piece of each text; the first token is given and adds 0."""
    pieces: list[list[str]] = []
    shares: list[list[list[float]]] = [[] for _ in found]
    for text in range(len(found[0])):
        cut = text_streaming.spans(session.base.tokenizer, found[0][text].tokens)
        pieces.append([piece for piece, _ in cut])
        for variant, rows in enumerate(found):
            each, start, sums = [0.0, *rows[text].each], 0, []
            for _, length in cut:
                sums.append(sum(each[start : start + length]))
                start += length
            shares[variant].append(sums)
    return scores.model_copy(update={"pieces": pieces, "piece_scores": shares})


def _settings(request: rq.Chat | rq.SideBySide | rq.Compare) -> Settings:
    return Settings(request.max_new_tokens, request.temperature)


def _single(control: Control) -> OnText:
    return lambda _, text: control.piece(text)


def _nobody(number: int, text: str) -> None:
    """Ignore streamed text."""
