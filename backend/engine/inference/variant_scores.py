"""Scores of texts and of next tokens under several variants. Uses the session to activate them."""

import torch

from backend import requests as rq
from backend import results as rs
from backend.engine.core.job_control import Control
from backend.engine.inference import scoring, text_streaming
from backend.engine.session import Session


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
