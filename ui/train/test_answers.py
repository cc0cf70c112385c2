"""The answers of a run to its test questions over time, as a tree for `safe_view`."""

from collections.abc import Sequence
from typing import NamedTuple

from backend import Event
from ui.charts.loss_chart import is_over
from ui.components import units
from ui.components.safe_view import Node, el
from ui.components.session_facts import BASE_COLOUR

YET = "The adapter will answer at the next test."
NEWEST = 2
"""Number of answers shown directly; earlier ones are collapsed."""


class Said(NamedTuple):
    """One answer, and the range of steps at which it stayed the same."""

    first: int
    last: int
    answer: str


class Watched(NamedTuple):
    """One test question with the answer of the base and those of the adapter, in order."""

    prompt: str
    base: str | None
    said: tuple[Said, ...]


def watched(events: Sequence[Event]) -> list[Watched]:
    """Collect the answers of a run, without those that a resume discarded."""
    answers: list[tuple[str, int, str]] = []
    for event in events:
        if event.type == "resumed":
            answers = [each for each in answers if each[1] <= (event.step or 0)]
        elif event.type == "answer" and event.prompt is not None:
            answers.append((event.prompt, event.step or 0, event.text or ""))
    prompts = dict.fromkeys(prompt for prompt, _, _ in answers)
    let_go = _let_go(events)
    found = [_watched(prompt, answers) for prompt in prompts]
    return [each for each in found if each.said or each.prompt not in let_go]


def _let_go(events: Sequence[Event]) -> set[str]:
    """Return the questions that were later replaced by others."""
    let_go: set[str] = set()
    asked: set[str] = set()
    changed = False
    for event in events:
        if event.type == "adjusted":
            changed = True
        elif event.type == "answer" and event.step == 0 and event.prompt is not None:
            if changed:
                let_go, asked, changed = let_go | asked, set(), False
            asked.add(event.prompt)
    return let_go - asked


def _watched(prompt: str, answers: list[tuple[str, int, str]]) -> Watched:
    mine = [(step, answer) for each, step, answer in answers if each == prompt]
    base = next((answer for step, answer in mine if step == 0), None)
    said: list[Said] = []
    for step, answer in (each for each in mine if each[0] > 0):
        if said and said[-1].answer == answer:
            said[-1] = said[-1]._replace(last=step)
        else:
            said.append(Said(step, step, answer))
    return Watched(prompt, base, tuple(said))


def strip(events: Sequence[Event], colour: str) -> Node | None:
    """Draw the answers to the test questions: the base, then the adapter during training."""
    over = is_over(events)
    found = [each for each in watched(events) if each.said or not over]
    if not found:
        return None
    return el(
        "div",
        el("h3", "How it answers now"),
        *(_prompt(each, colour) for each in found),
        cls="aw-watch",
    )


def warning(events: Sequence[Event]) -> Node | None:
    """Show the latest warning of a run, unless it was resumed since."""
    last = None
    for event in events:
        if event.type in ("warning", "resumed", "started"):
            last = event.text if event.type == "warning" else None
    return el("div", el("p", last), cls="aw-note warn aw-warned", role="status") if last else None


def _prompt(each: Watched, colour: str) -> Node:
    newest, earlier = each.said[-NEWEST:], each.said[:-NEWEST]
    base = [] if each.base is None else [_row("base", each.base, BASE_COLOUR)]
    return el(
        "div",
        el("p", f"\u201c{each.prompt}\u201d", cls="aw-watch-prompt"),
        el("dl", *base, *(_row(_when(s, s is newest[-1]), s.answer, colour) for s in newest)),
        None if each.said else el("p", YET, cls="aw-quiet"),
        _earlier(earlier, colour) if earlier else None,
        cls="aw-watch-one",
    )


def _earlier(said: Sequence[Said], colour: str) -> Node:
    rows = [_row(_when(each), each.answer, colour) for each in said]
    title = units.plural(len(said), "earlier answer")
    return el("details", el("summary", title), el("dl", *rows), cls="aw-details")


def _row(when: str, answer: str, colour: str) -> Node:
    dot = el("span", cls="aw-dot", colour=colour, aria_hidden="true")
    return el("div", el("dt", dot, when), el("dd", answer or "(nothing)"))


def _when(said: Said, is_newest: bool = False) -> str:
    if said.first == said.last:
        return f"step {units.count(said.first)}"
    if is_newest:
        return f"since step {units.count(said.first)}"
    return f"steps {units.count(said.first)} to {units.count(said.last)}"
