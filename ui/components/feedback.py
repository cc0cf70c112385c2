"""Errors on the screen: what happened, what to do, and the details folded. Never a stack trace."""

import logging
from typing import NamedTuple

import gradio as gr

from backend import errors
from ui.components.safe_view import Child, Node, button, el

log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """An error as a person reads it."""

    what: str
    cure: str = ""
    details: str = ""
    asked: bool = False
    """Whether somebody wanted it so: stopped, and nothing went wrong."""

    @property
    def sentence(self) -> str:
        return f"{self.what} {self.cure}".strip()


def explain(error: Exception) -> Failure:
    """Turn any error into words; one that nobody foresaw is logged and named as such."""
    if isinstance(error, errors.WorkbenchError):
        return Failure(error.what, error.cure, error.details, isinstance(error, errors.Stopped))
    if isinstance(error, TimeoutError):
        return Failure("This took too long.", "Try again; if it happens again, restart the app.")
    log.error("An error nobody foresaw.", exc_info=error)
    return Failure(
        "Something went wrong inside the app.",
        "Try again. If it happens again, report it with the details below.",
        f"{type(error).__name__}: {error}",
    )


def refuse(title: str, error: Exception) -> None:
    """Say why a button did nothing, until somebody has read it."""
    gr.Warning(explain(error).sentence, title=title, duration=None)


def mention(sentence: str, title: str) -> None:
    """Say what somebody should know of what they just did, until they have read it."""
    gr.Info(sentence, title=title, duration=None)


def for_api(error: Exception) -> gr.Error:
    """Turn any error into the one that an API client receives word for word."""
    return gr.Error(explain(error).sentence, print_exception=False)


def failure_card(failure: Failure, mend: Child = None, title: str = "") -> Node:
    """Describe a failure: what, what to do, one button that mends it, details folded."""
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
    """Describe text that opens on request."""
    return el("details", el("summary", title), el("pre", text), cls="aw-details")


def evidence(text: str) -> Node:
    """Describe a check line: what was verified, and by how much."""
    return el("p", text, cls="aw-evidence")


def mend_button(label: str, act: str, arg: str = "") -> Node:
    """Describe the one button that mends a failure."""
    return button(label, act, arg, kind="mend")
