"""Answers, scores, and how likely the next word is."""

from backend.results.base import Result


class Answers(Result):
    """`answers[variant][prompt]`."""

    answers: list[list[str]]


class Scores(Result):
    """`scores[variant][text]`: total natural-log probability of the tokens after the first.

    `tokens` counts those tokens. Where asked for, `pieces[text]` is the text cut where tokens show,
    and `piece_scores[variant][text]` what each piece adds; the first token is given and adds 0.
    """

    scores: list[list[float]]
    tokens: list[int]
    pieces: list[list[str]] | None = None
    piece_scores: list[list[list[float]]] | None = None


class Answer(Result):
    """One streamed answer, once it is whole or was `stopped` before that.

    One whose turn had not come by then has no tokens.
    """

    text: str
    tokens: int
    seconds: float
    stopped: bool = False


class SideAnswers(Result):
    """One answer per variant; `batched` counts those that were computed in one batch."""

    answers: list[Answer]
    batched: int


class NextTokens(Result):
    """`chances[variant][word]`: how likely each word is next, between 0 and 1."""

    words: list[str]
    chances: list[list[float]]
