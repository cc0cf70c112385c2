"""Answers, scores, and how likely the next word is."""

from backend.results.base import Result


class Answers(Result):
    """`answers[variant][prompt]`."""

    answers: list[list[str]]


class Scores(Result):
    """`scores[variant][text]`: total natural-log probability of the tokens after the first.

    `tokens` counts those tokens. If requested, `pieces[text]` is the text split at its tokens, and
    `piece_scores[variant][text]` the log-probability of each piece; that of the first is 0.
    """

    scores: list[list[float]]
    tokens: list[int]
    pieces: list[list[str]] | None = None
    piece_scores: list[list[list[float]]] | None = None


class Answer(Result):
    """One streamed answer, complete or `stopped`.

    An answer that was stopped before it began has no tokens.
    """

    text: str
    tokens: int
    seconds: float
    stopped: bool = False


class SideAnswers(Result):
    """One answer per variant; `batched` is the number computed in one batch."""

    answers: list[Answer]
    batched: int


class NextTokens(Result):
    """`chances[variant][word]`: the probability of each next word, between 0 and 1."""

    words: list[str]
    chances: list[list[float]]
