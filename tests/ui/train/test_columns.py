"""What the page says of columns, unfit rows and placeholders, and what it asks for."""

import json

from backend import results as rs
from tests.ui.app.test_page import event
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from tests.ui.train.test_data import PREVIEW, UNKNOWN, last_check, page, service
from ui.app.layout import Page
from ui.train.data.data_picker import asked_texts
from ui.train.data.data_report import report
from ui.train.readiness import Check

__all__ = ["page", "service"]


def test_each_column_is_shown_with_what_it_is_read_as() -> None:
    uses = (
        rs.ColumnUse(name="id", use="", rows=PREVIEW.rows),
        rs.ColumnUse(name="question", use="the question", rows=PREVIEW.rows),
        rs.ColumnUse(name="system", use="the system prompt", rows=1),
        rs.ColumnUse(name="input", use="added to the question", rows=0),
    )

    shown = words(report(PREVIEW.model_copy(update={"uses": uses}), 512))

    told = shown[shown.index("question the question") :]
    assert told.startswith(
        "question the question system the system prompt, in 1 row "
        "input added to the question, empty id left out"
    )


def test_rows_that_are_not_for_this_offer_the_columns_that_are(
    page: Page, service: FakeService
) -> None:
    unfit = rs.Problem(what="These rows are preference pairs.", cure="Choose the better ones.")
    look = UNKNOWN.model_copy(
        update={"unfit": unfit, "instead": {"prompt": "frage", "answer": "antwort"}}
    )
    service.script["preview-data"] = lambda request: look

    shown = last_check(page)

    columns = page.train.picker.columns
    assert "These rows are preference pairs. Choose the better ones." in words(shown[columns.note])
    offer = event("columns", json.dumps(look.instead))
    assert columns.use_offer(offer) == ["frage", "antwort", "", "", "", ""]


def test_placeholders_are_asked_for_once() -> None:
    found = (rs.Placeholder(name="name", rows=77), rs.Placeholder(name="author", rows=60))
    check = Check(look=PREVIEW.model_copy(update={"placeholders": found}))

    first = asked_texts(check, "")
    later = asked_texts(check, "name = Ad")

    assert (first["visible"], first["value"]) == (True, "name = \nauthor = ")
    assert "77 rows of the data" in first["info"]
    assert "value" not in later  # what a person types is never overwritten
