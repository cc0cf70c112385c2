"""Columns of answers and scored texts as trees for `safe_view`. Pure functions."""

import math
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from backend import results as rs
from ui.chat.chat_state import BASE, Column, Exchange
from ui.components import tables, units
from ui.components.safe_view import Child, Node, el
from ui.components.session_facts import BASE_COLOUR

WORD = re.compile(r"\s*\S+|\s+$")
SURPRISE = 8.0
"""A piece with a log-probability of minus this is tinted fully."""


def answers(columns: Sequence[Column], hint: str = "") -> Node:
    """Show all columns side by side; words that differ from the base are marked."""
    if not columns:
        return el("p", "No model is chosen. Choose one under Who answers.", cls="aw-quiet aw-empty")
    reference = next((c for c in columns if c.key == BASE), columns[0])
    known = {each.number: each for each in reference.exchanges}
    drawn = [_column(column, known, column is reference, hint) for column in columns]
    return el("div", *drawn, cls="aw-answers", role="group", aria_label="Answers side by side")


def named(column: Column, note: str = "") -> Node:
    """Describe a column's name with the colours of its adapters."""
    colours = column.colours or (BASE_COLOUR,)
    dots = [el("span", cls="aw-dot", colour=each, aria_hidden="true") for each in colours]
    quiet = el("span", note, cls="aw-quiet") if note else None
    return el("span", *dots, column.title, quiet, cls="aw-chip")


def _column(column: Column, known: dict[int, Exchange], is_reference: bool, hint: str) -> Node:
    said: list[Child] = []
    for each in column.exchanges:
        said.append(el("div", each.question, cls="aw-turn asked"))
        said.append(_answer(each, None if is_reference else known.get(each.number)))
    if not said:
        said.append(el("p", hint or "Ask something below.", cls="aw-quiet"))
    return el(
        "section",
        el("div", named(column), cls="aw-column-head"),
        el("div", el("div", *said, cls="aw-talk"), cls="aw-turns"),
        cls="aw-answer-column",
        colour=(column.colours or (BASE_COLOUR,))[0],
        data_column=column.key,
        aria_label=f"Answers of {column.title}",
    )


def _answer(each: Exchange, base: Exchange | None) -> Node:
    if each.coming:
        words: list[Child] = [each.answer, el("span", cls="aw-caret", aria_hidden="true")]
        return el("div", *words, cls="aw-turn said", aria_busy="true")
    answer = each.answer.strip()
    if not answer:  # nothing to compare with the base
        why = "(stopped before it could answer)" if each.stopped else "(an empty answer)"
        return el("div", why, cls="aw-turn said aw-quiet")
    cut = el("span", " (stopped)", cls="aw-quiet") if each.stopped else None
    return el("div", *_compared(answer, base), cut, cls="aw-turn said")


def _compared(answer: str, base: Exchange | None) -> list[Child]:
    """Mark the words that differ from the base; only if the base's answer is complete."""
    if base is None or base.coming or base.stopped or not base.answer.strip():
        return [answer]
    parts: list[Child] = []
    for part, new in differing(base.answer.strip(), answer):
        bare = part.lstrip()
        gap = part[: len(part) - len(bare)]
        parts += [gap, el("span", bare, cls="aw-differs")] if new and bare else [part]
    return parts


def differing(base: str, answer: str) -> list[tuple[str, bool]]:
    """Split an answer into parts: (words, whether they differ from the base)."""
    left, right = WORD.findall(base), WORD.findall(answer)
    matcher = SequenceMatcher(
        None, [w.strip() for w in left], [w.strip() for w in right], autojunk=False
    )
    parts = []
    for kind, _, _, start, end in matcher.get_opcodes():
        if words := "".join(right[start:end]):
            parts.append((words, kind != "equal"))
    return parts


# -- scores --------------------------------------------------------------------------------------


def score_view(scores: rs.Scores, columns: Sequence[Column]) -> Node:
    """Show how likely a text is for each model: the numbers, and the text tinted by surprise."""
    count = scores.tokens[0]
    rows = [
        el(
            "tr",
            tables.cell("Model", named(column), cls="aw-name"),
            tables.cell("Log-probability", f"{total[0]:.2f} nats"),
            tables.cell("Perplexity", _grouped(perplexity(total[0], count))),
        )
        for column, total in zip(columns, scores.scores, strict=True)
    ]
    return el(
        "div",
        tables.table("Scores", ("Model", "Log-probability", "Perplexity"), rows),
        el("p", _best(scores, columns), cls="aw-result") if len(columns) > 1 else None,
        *_tinted(scores, columns),
        el("p", f"Over {units.plural(count, 'token')}, without the first, which is given.",
           cls="aw-quiet"),
    )  # fmt: skip


def _grouped(value: float) -> str:
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def perplexity(total: float, tokens: int) -> float:
    """Return exp(-log-probability / tokens), capped to stay finite."""
    return math.exp(min(-total / max(tokens, 1), 700.0))


def _best(scores: rs.Scores, columns: Sequence[Column]) -> str:
    totals = [each[0] for each in scores.scores]
    best = max(range(len(totals)), key=totals.__getitem__)
    return f"Lowest perplexity: {columns[best].title}."


def _tinted(scores: rs.Scores, columns: Sequence[Column]) -> list[Node]:
    if not scores.pieces or not scores.piece_scores:
        return []
    lines = [
        el("div", named(column), el("p", *_pieces(scores.pieces[0], shares[0])), cls="aw-surprise")
        for column, shares in zip(columns, scores.piece_scores, strict=True)
    ]
    legend = "A stronger tint means a less likely token. Point at one to see its probability."
    return [*lines, el("p", legend, cls="aw-quiet")]


def _pieces(pieces: Sequence[str], shares: Sequence[float]) -> list[Node]:
    return [
        el(
            "span",
            piece,
            cls="aw-piece given" if index == 0 else "aw-piece",
            share=min(-log / SURPRISE, 1.0),
            title="given"
            if index == 0
            else f"probability {units.percent(math.exp(min(log, 0.0)))}",
        )
        for index, (piece, log) in enumerate(zip(pieces, shares, strict=True))
    ]
