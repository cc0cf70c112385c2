"""The result of a run in two sentences: what it predicts of unseen answers, and what it forgot.

Exact match says something about short answers. A long one is hardly ever repeated word for word,
so there the share of correct tokens is the headline.
"""

from backend import results as rs
from ui.components import units
from ui.components.safe_view import Node, el

SHORT_TOKENS = 12
"""With this many tokens per answer, exact match is the headline whatever its value."""
SAYS_SOMETHING = 0.05
NOT_TESTED = "Nothing was held out, so the adapter was not tested on unseen examples."


def headline(run: rs.RunSummary, before: rs.Evaluation | None, after: rs.Evaluation | None) -> str:
    """Return the result on held-out examples, or the training loss where none were held out."""
    if after is None and run.eval_loss is not None:
        return f"Held-out loss is {units.loss(run.eval_loss)} at the end."
    if after is None or not after.tokens:
        return f"Training loss is {units.loss(run.loss)} at the end. {NOT_TESTED}"
    return _exact_match(before, after) if _counts_answers(before, after) else _tokens(before, after)


def neutral_line(run: rs.RunSummary) -> Node | None:
    """Say how the base's perplexity on neutral text has changed; with a hint if it rose clearly."""
    found = run.neutral_text
    if found is None:
        return None
    after = found.perplexity_after
    now = "a value that is not a finite number" if after is None else units.perplexity(after)
    said = (
        f"On neutral text its perplexity went from {units.perplexity(found.perplexity_before)} "
        f"to {now}."
    )
    if not found.forgets:
        return el("p", said, cls="aw-quiet")
    return el(
        "div",
        el("p", el("strong", f"{run.name} has forgotten some of what the base knows. "), said),
        el(
            "p",
            "If its other answers got worse, train again with fewer epochs, a lower learning rate "
            "or a lower rank, or use the adapter at a strength below 1.",
            cls="aw-quiet",
        ),
        cls="aw-note warn aw-warned",
    )


def _counts_answers(before: rs.Evaluation | None, after: rs.Evaluation) -> bool:
    """Return whether exact match says something: answers are short, or some of them match."""
    if after.exact_match is None:
        return False
    best = max(each.exact_match or 0.0 for each in (before, after) if each is not None)
    short = after.tokens <= SHORT_TOKENS * max(after.examples, 1)
    return short or best >= SAYS_SOMETHING


def _exact_match(before: rs.Evaluation | None, after: rs.Evaluation) -> str:
    base = f"base {units.percent(before.exact_match or 0.0)}, " if before else ""
    return (
        f"Held-out exact match: {base}now {units.percent(after.exact_match or 0.0)} "
        f"of {units.plural(after.examples, 'answer')}."
    )


def _tokens(before: rs.Evaluation | None, after: rs.Evaluation) -> str:
    base = f", before {units.percent(before.token_accuracy)}" if before else ""
    what = "text" if after.exact_match is None else "answers"
    return f"Predicts {units.percent(after.token_accuracy)} of the tokens of unseen {what}{base}."
