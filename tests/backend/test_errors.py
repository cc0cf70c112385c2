"""Errors keep their kind and their words on the way from the worker to the page."""

import json
from collections.abc import Iterator

import pytest

from backend import errors
from backend.errors import WorkbenchError, from_dict


@pytest.mark.parametrize("kind", WorkbenchError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_an_error_crosses_the_seam_unchanged(kind: type[WorkbenchError]) -> None:
    sent = kind("Rank must be at least 1, got 0.", cure="Try 8.", details="Traceback ...")

    received = from_dict(json.loads(json.dumps(sent.to_dict())))

    assert type(received) is kind
    assert (received.what, received.cure, received.details) == (
        "Rank must be at least 1, got 0.",
        "Try 8.",
        "Traceback ...",
    )


def test_the_text_is_what_happened_and_what_to_do() -> None:
    assert str(errors.Busy("Training is still going on.", cure="Wait for it.")) == (
        "Training is still going on. Wait for it."
    )
    assert str(errors.Busy("Training is still going on.")) == "Training is still going on."


def test_details_stay_out_of_the_text() -> None:
    assert "Traceback" not in str(errors.ModelError("It is damaged.", details="Traceback ..."))


def test_an_error_of_an_unknown_kind_is_still_shown() -> None:
    received = from_dict({"kind": "FromTheFuture", "what": "Something new.", "cure": "Update."})

    assert type(received) is WorkbenchError
    assert str(received) == "Something new. Update."


def test_the_tree_on_top_of_the_module_names_every_error() -> None:
    drawn = (errors.__doc__ or "").split("+-- ")[1:]

    assert [line.split()[0] for line in drawn] == list(_names_below(WorkbenchError))


def _names_below(kind: type) -> Iterator[str]:
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield each.__name__
            yield from _names_below(each)
