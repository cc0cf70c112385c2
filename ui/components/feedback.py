"""Errors on the screen: what happened, what to do, and collapsed details. No stack traces."""

import logging
from typing import NamedTuple

import gradio as gr

from backend import errors
from ui.components.safe_view import Child, Node, button, el

log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """An error as the user sees it."""

    what: str
    cure: str = ""
    details: str = ""
    asked: bool = False
    """Whether the user caused it by pressing Stop, so that nothing went wrong."""

    @property
    def sentence(self) -> str:
        return f"{self.what} {self.cure}".strip()


def explain(error: Exception) -> Failure:
    """Turn any error into a message; an unexpected one is also logged."""
    if isinstance(error, errors.WorkbenchError):
        return Failure(error.what, error.cure, error.details, isinstance(error, errors.Stopped))
    if isinstance(error, TimeoutError):
        return Failure("This took too long.", "Try again; if it happens again, restart the app.")
    log.error("Unexpected error.", exc_info=error)
    return Failure(
        "Something went wrong inside the app.",
        "Try again. If it happens again, report it with the details below.",
        f"{type(error).__name__}: {error}",
    )


def refuse(title: str, error: Exception) -> None:
    """Show why an action failed; the message stays until the user closes it."""
    gr.Warning(explain(error).sentence, title=title, duration=None)


def mention(sentence: str, title: str) -> None:
    """Show a note on the last action; it stays until the user closes it."""
    gr.Info(sentence, title=title, duration=None)


def for_api(error: Exception) -> gr.Error:
    """Turn any error into a `gr.Error` with its full text, for API clients."""
    return gr.Error(explain(error).sentence, print_exception=False)


def failure_card(failure: Failure, mend: Child = None, title: str = "") -> Node:
    """Show a failure: what happened, what to do, a button that fixes it, collapsed details."""
    return el(
        "div",
        el("div", title, cls="aw-card-title") if title else None,
        el("p", failure.what),
        el("p", failure.cure, cls="aw-quiet") if failure.cure else None,
        mend,
        folded("Details", failure.details) if failure.details else None,
        cls="aw-note wait" if failure.asked else "aw-note bad",
        role="status" if failure.asked else "alert",
    )


def folded(title: str, text: str) -> Node:
    """Return collapsed text that opens on a click."""
    return el("details", el("summary", title), el("pre", text), cls="aw-details")


def evidence(text: str) -> Node:
    """Return a line with a check mark: what was verified, and the largest difference."""
    return el("p", text, cls="aw-evidence")


def mend_button(label: str, act: str, arg: str = "") -> Node:
    """Return the primary button of a card: the one that fixes the problem."""
    return button(label, act, arg, kind="mend")
