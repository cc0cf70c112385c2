"""Data on the page: what it is read as, which column is what, which rows are bad, how long."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from backend import Settings, errors
from backend import requests as rq
from backend import results as rs
from tests.ui.app.test_page import checks, draw, event, form_of
from tests.ui.fake_facts import STATS
from tests.ui.fake_service import FakeService
from tests.ui.test_view import words
from ui.app.layout import Page
from ui.train.data.data_picker import data_line as line_of
from ui.train.data.data_picker import highlighted
from ui.train.data.data_report import finding, report
from ui.train.readiness import Check, data_line

EXAMPLE = rs.Example(pieces=[("Hello", True)], tokens=1, cut=False)
PREVIEW = rs.DataPreview(
    rows=600,
    problems=[],
    stats=STATS,
    examples=[EXAMPLE],
    shape="question + answer",
    shape_reason="it has the columns question and answer",
    columns=("question", "answer"),
)
UNKNOWN = PREVIEW.model_copy(
    update={"shape": "", "shape_reason": "", "columns": ("frage", "antwort"), "stats": None}
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    settings = Settings(workspace=tmp_path / "w", runtime="inline")
    with FakeService(settings, step_seconds=0.001) as fake:
        fake.start(rq.LoadModel()).result(timeout=10)
        yield fake


@pytest.fixture
def page(service: FakeService) -> Page:
    with gr.Blocks() as demo:
        made = Page(service)
        made.connect(demo)
    return made


def last_check(page: Page, **changes: object) -> dict[Any, Any]:
    """Check the settings, and return what each component shows afterwards."""
    outputs = list(checks(page, **form_of(page, **changes)))[-1]
    parts = [page.train.check, page.train.card, page.train.go, page.train.picker.line]
    shown = dict(zip(parts, outputs, strict=False))
    found = page.train.picker.show_findings(outputs[0], "")
    return {**shown, **dict(zip(page.train.picker.drawn, found, strict=True))}


# -- columns -------------------------------------------------------------------------------------


def test_columns_that_tell_nothing_open_the_choice(page: Page, service: FakeService) -> None:
    service.script["preview-data"] = lambda request: UNKNOWN

    shown = last_check(page)

    columns = page.train.picker.columns
    assert shown[columns.group]["visible"]
    assert "The column names are not recognised" in words(shown[columns.note])
    for component in columns.components:
        assert [value for _, value in shown[component]["choices"]] == ["", "frage", "antwort"]


def test_columns_that_tell_leave_the_choice_as_it_is(page: Page, service: FakeService) -> None:
    service.script["preview-data"] = lambda request: PREVIEW

    shown = last_check(page)

    columns = page.train.picker.columns
    assert shown[columns.group] == gr.skip()
    assert "Read as question + answer" in words(shown[columns.note])
    assert columns.toggle(False) == (True, gr.update(visible=True))


def test_chosen_columns_are_part_of_the_run(page: Page) -> None:
    values = form_of(page, columns__prompt="frage", columns__answer="antwort")

    train = page.train.request(values)

    assert train.columns == rq.Columns(prompt="frage", answer="antwort")
    assert page.train.request(form_of(page)).columns == rq.Columns()
    folded, *emptied = page.train.picker.columns.cleared()
    assert not folded["visible"]
    assert emptied == [False, *[""] * 6]


def test_half_a_choice_is_said(page: Page) -> None:
    shown = last_check(page, columns__prompt="frage")

    card = words(shown[page.train.card])
    assert "chosen for the question but not for the answer. Choose both." in card


def test_kept_columns_do_not_outlive_their_data(page: Page) -> None:
    kept = {"data": "/gone.csv", "columns.prompt": "q", "columns.answer": "a"}
    kept_with_data = {**kept, "data": "starter:polite"}

    assert page.train.restore(kept).keys().isdisjoint(page.train.picker.columns.components)
    assert set(page.train.picker.columns.components) & page.train.restore(kept_with_data).keys()


# -- bad rows ------------------------------------------------------------------------------------


def test_the_card_offers_to_leave_bad_rows_out(page: Page, service: FakeService) -> None:
    problem = rs.Problem(what="3 of 600 rows cannot be used.", cure="Mend.", droppable=True)

    def refuse(request: rq.Preflight) -> rs.PreflightReport:
        return ready_report().model_copy(update={"ready": False, "problems": [problem]})

    service.script["preflight"] = refuse

    shown = last_check(page)

    assert "Leave bad rows out" in words(shown[page.train.card])
    component = page.train.form.components["drop_bad_rows"]
    assert page.train.take_offer(event("drop"))[component] is True
    assert page.train.picker.leave_bad_rows_out(event("drop")) is True


def test_bad_rows_are_listed_with_values_and_a_way_out() -> None:
    problems = [
        rs.RowProblem(row=7, what="answer is 5, not text", value="5"),
        rs.RowProblem(row=9, file="b.csv", what="a turn has no role", value="{'x': 1}"),
    ]

    shown = words(report(PREVIEW.model_copy(update={"problems": problems, "bad": 120}), 512))

    assert "120 rows cannot be used." in shown
    assert "Row 7: answer is 5, not text" in shown
    assert "b.csv, row 9: a turn has no role : {'x': 1}" in shown
    assert "And 118 more." in shown
    assert "Leave the 120 bad rows out" in shown


def test_rows_that_are_left_out_are_not_offered_again() -> None:
    problem = rs.RowProblem(row=7, what="answer is missing")
    preview = PREVIEW.model_copy(update={"problems": [problem], "bad": 1})

    shown = words(report(preview, 512, left_out=True))

    assert "1 row cannot be used, and left out." in shown
    assert "Leave" not in shown


# -- what is in the data -------------------------------------------------------------------------


def bins(*counts: tuple[int, int, int]) -> tuple[rs.LengthBin, ...]:
    return tuple(rs.LengthBin(low=low, high=high, examples=n) for low, high, n in counts)


@pytest.mark.parametrize(
    ("longest", "sentence"),
    [
        (512, "Half of the examples have at most 20 tokens; none is cut."),
        (25, "Half of the examples have at most 20 tokens; few reach the cut at 25."),
        (20, "Half of the examples have at most 20 tokens; 4 or more are cut at 20."),
    ],
)
def test_the_lengths_have_a_finding(longest: int, sentence: str) -> None:
    assert finding(bins((1, 10, 3), (11, 20, 10), (21, 30, 4)), longest) == sentence


def test_half_of_the_examples_is_told_by_the_median_where_one_bar_holds_many() -> None:
    found = finding(bins((10, 642, 21), (9_400, 10_017, 1)), 20_000, 24)
    assert found == "Half of the examples have at most 24 tokens; none is cut."


def test_the_lengths_read_without_a_picture() -> None:
    stats = STATS.model_copy(update={"histogram": bins((5, 5, 1), (6, 1200, 2))})

    shown = words(report(PREVIEW.model_copy(update={"stats": stats}), 512))

    assert "5 tokens: 1 example" in shown
    assert "6 to 1,200 tokens: 2 examples" in shown


def test_a_bar_far_beyond_the_others_says_what_it_holds() -> None:
    stats = STATS.model_copy(update={"histogram": bins((5, 9, 8), (10, 14, 2), (900, 1200, 2))})

    shown = words(report(PREVIEW.model_copy(update={"stats": stats}), 512))

    assert "last bar: 900 to 1,200 tokens" in shown
    assert "2 or more are cut at 512" in shown


def test_groups_of_rows_say_what_becomes_of_them() -> None:
    group = rs.RowGroup(kind="duplicate", count=12, places=("row 4", "row 9"))
    stats = STATS.model_copy(update={"groups": (group,)})

    shown = words(report(PREVIEW.model_copy(update={"stats": stats}), 512))

    assert "Duplicates: 12" in shown
    assert "row 4, row 9 and 10 more" in shown


def test_the_line_says_what_own_data_was_read_as() -> None:
    check = Check(report=ready_report())

    assert data_line(check, "").endswith("Read as messages, because every row has messages.")
    assert data_line(check, "Talk like a pirate.").endswith("tokens. Talk like a pirate.")
    assert data_line(Check(look=PREVIEW), "") == (
        "600 rows. Read as question + answer, because it has the columns question and answer."
    )


@pytest.mark.parametrize(
    ("check", "shown"),
    [
        (Check(look=PREVIEW.model_copy(update={"notes": ("Held out is b.csv.",)})), True),
        (Check(look=UNKNOWN.model_copy(update={"notes": ("Held out is b.csv.",)})), True),
        (Check(look=PREVIEW), False),
    ],
)
def test_how_data_were_read_is_said_before_the_check_ends(check: Check, shown: bool) -> None:
    assert ("Held out is b.csv." in words(line_of(check, "/a.csv"))) == shown


def test_how_data_were_read_is_said_below_the_line(page: Page, service: FakeService) -> None:
    note = 'a.csv is read as KOI8-R (Cyrillic): "\u041a\u043e\u0442"'
    stats = STATS.model_copy(update={"notes": (note,)})
    report = ready_report()
    service.script["preflight"] = lambda request: report.model_copy(update={"stats": stats})

    shown = last_check(page)

    assert note in words(shown[page.train.picker.line])


def test_rows_that_were_not_all_counted_are_said_to_be_more() -> None:
    look = PREVIEW.model_copy(update={"more_rows": True})

    assert data_line(Check(look=look), "").startswith("More than 600 rows. Read as question")


# -- large data ----------------------------------------------------------------------------------


def test_large_data_is_read_beside_and_then_checked(page: Page, service: FakeService) -> None:
    service.script["preview-data"] = lambda request: PREVIEW.model_copy(update={"quick": False})
    first = last_check(page)
    job = page.handle.last("prepare-data")
    assert job is not None
    job.result(timeout=10)

    second = last_check(page)

    assert "Reading and checking 600 rows once" in words(first[page.train.card])
    assert not first[page.train.go]["interactive"]
    assert "Ready." in words(second[page.train.card])
    assert page.handle.last("prepare-data") is job


def test_a_check_goes_on_when_large_data_was_read(page: Page, service: FakeService) -> None:
    snapshot = service.snapshot()
    reading = rs.JobInfo(
        id=9,
        title="Checking x",
        operation="prepare-data",
        run_id=None,
        text="",
        fraction=None,
        seconds_left=None,
        stopping=False,
    )
    during = snapshot.model_copy(update={"side_jobs": (reading,)})
    check = Check(preparing=True)

    keys = [page.train.show(each, check, [])[page.train.check_key] for each in (during, snapshot)]

    assert keys[0] != keys[1]


def test_of_a_row_without_an_answer_only_the_reason_is_shown() -> None:
    empty = rs.Example(pieces=[("<|bos|>", False)], tokens=1, cut=False, row=3, left_out="it is")
    late = rs.Example(pieces=[("Where", False)], tokens=9, cut=True, row=4, left_out="it is late")

    shown = highlighted(PREVIEW.model_copy(update={"examples": [empty, late]}))

    assert "".join(text for text, _ in shown) == (
        "Row 3, left out: it is\n\n\nRow 4, left out: it is late\nWhere"
    )


def test_other_data_begin_anew(page: Page) -> None:
    picker = page.train.picker
    drop = page.train.form.components["drop_bad_rows"]
    afresh = [*picker.columns.emptied, drop, picker.held_out, picker.placeholders]
    told = dict(zip(afresh, picker.begin_anew(), strict=True))

    assert (told[drop], told[picker.held_out]) == (False, "")
    assert picker.choose("starter:pirate", "starter:polite") == picker.begin_anew()
    assert set(map(str, picker.choose("starter:pirate", "starter:pirate"))) == {str(gr.skip())}
    taken = page.train.take_offer(event("drop"))
    assert taken[drop] is True
    assert not taken[picker.preview]["visible"]  # it still offered what was just taken


def test_rows_of_held_out_data_are_told_apart() -> None:
    stats = STATS.model_copy(update={"rows": 73, "held_out_rows": 13, "examples": 55})
    check = Check(report=rs.PreflightReport.model_construct(stats=stats))

    assert data_line(check, "").startswith("60 rows and 13 of the held-out data, 55 to train on")
    assert data_line(check, "Pirates.").startswith("73 rows, 55 to train on")


def test_a_check_that_was_stopped_is_taken_up_on_request(page: Page, service: FakeService) -> None:
    service.script["preview-data"] = lambda request: PREVIEW.model_copy(update={"quick": False})
    service.script["prepare-data"] = lambda request: errors.Stopped("Stopped, as asked.")
    last_check(page)
    job = page.handle.last("prepare-data")
    assert job is not None
    job.wait(10)

    stopped = last_check(page)
    again = page.train.take_offer(event("recheck"))

    assert "Stopped, as asked." in words(stopped[page.train.card])
    assert "Check the data again" in words(stopped[page.train.card])
    assert str(again[page.train.check_key]).startswith("again at")
    assert page.handle.last("prepare-data") is None


def test_a_look_at_large_data_shows_the_first_rows(page: Page, service: FakeService) -> None:
    asked: list[rq.PreviewData] = []

    def look(request: rq.PreviewData) -> rs.DataPreview:
        asked.append(request)
        return PREVIEW.model_copy(update={"quick": False, "stats": None})

    service.script["preview-data"] = look

    _, shown, pieces = page.train.picker.look_at_data(**form_of(page))

    assert [request.every_row for request in asked] == [False]
    assert "the other rows are not checked yet" in words(shown)
    assert pieces == [("Row 0\n", None), ("Hello", "learned")]


def ready_report() -> rs.PreflightReport:
    return rs.PreflightReport(
        ready=True,
        problems=[],
        notes=[],
        matched_modules=["q_proj"],
        trainable_parameters=100,
        total_parameters=3_850_000,
        stats=STATS,
        steps=12,
        memory_bytes=1,
        memory_available_bytes=2,
        seconds=None,
        seconds_from="",
    )


def test_the_page_draws_while_data_is_read(page: Page) -> None:
    assert page.train.card in draw(page, check=Check(preparing=True, look=PREVIEW))


def test_data_to_test_with_has_an_upload_of_its_own(page: Page, tmp_path: Path) -> None:
    picker = page.train.picker
    rows, picture = tmp_path / "exam.jsonl", tmp_path / "cat.png"
    rows.write_text('{"text": "a"}\n')
    picture.write_bytes(b"x")

    taken = picker.add_held_out_upload(str(rows))
    refused = picker.add_held_out_upload(str(picture))

    uploaded = taken[picker.held_out]["value"]
    assert uploaded.endswith("exam.jsonl")
    assert "value" not in taken[picker.data]
    assert ("exam.jsonl (uploaded)", uploaded) in taken[picker.data]["choices"]
    assert "cat.png is not a data file." in words(refused[picker.refused_held_out])
