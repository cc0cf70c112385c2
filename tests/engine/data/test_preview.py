"""A look at own rows before anything is trained, and at large data beside the session."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import Service
from backend import requests as rq
from backend import results as rs
from backend.engine.data import preview
from backend.errors import DataError
from tests.engine.tiny import start_service, write_base


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("preview")
    with start_service(folder / "work", write_base(folder / "base")) as service:
        yield service


def rows_file(folder: Path, rows: list[Any]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def look(service: Service, data: str, **options: Any) -> rs.DataPreview:
    preview: rs.DataPreview = service.start(rq.PreviewData(data=data, **options)).result(120)
    return preview


def test_own_rows_are_shown_as_the_model_sees_them(service: Service, tmp_path: Path) -> None:
    rows = [{"question": f"Number {n}?", "answer": f"It is {n}."} for n in range(8)]

    shown = look(service, rows_file(tmp_path, rows), rows=3)

    assert (shown.rows, shown.bad, len(shown.examples)) == (8, 0, 3)
    assert (shown.shape, shown.shape_reason) == (
        "question + answer",
        "it has the columns question and answer",
    )
    assert [example.row for example in shown.examples] == [1, 2, 3]
    (asked, _), (learned, is_learned), *_ = shown.examples[0].pieces
    assert "Number 0?" in asked
    assert (learned, is_learned) == ("It is 0.<|end|>", True)
    assert shown.stats is not None
    assert sum(each.examples for each in shown.stats.histogram) == 8


def test_a_row_with_nothing_to_learn_says_so(service: Service, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Where?", "completion": "There."},
        {"prompt": "Where?", "completion": " "},
        {"prompt": "Where is it? " * 40, "completion": "There."},
    ]

    shown = look(service, rows_file(tmp_path, rows), max_length=32)

    assert [example.left_out for example in shown.examples] == [
        "",
        "it has no answer or text to learn from",
        "its answer starts after the longest example length",
    ]


def test_columns_that_tell_nothing_are_asked_for(service: Service, tmp_path: Path) -> None:
    file = rows_file(tmp_path, [{"eins": "Wo?", "zwei": "Dort."}] * 2)

    unknown = look(service, file)
    known = look(service, file, columns=rq.Columns(prompt="eins", answer="zwei"))

    assert (unknown.shape, unknown.columns, unknown.rows) == ("", ("eins", "zwei"), 2)
    assert unknown.examples == []
    assert known.shape == "chosen columns"
    assert known.examples[0].pieces[1] == ("Dort.<|end|>", True)


def test_a_wrong_choice_of_columns_is_an_error(service: Service, tmp_path: Path) -> None:
    file = rows_file(tmp_path, [{"eins": "Wo?", "zwei": "Dort."}])

    with pytest.raises(DataError) as caught:
        look(service, file, columns=rq.Columns(text="body"))

    assert str(caught.value) == "Plain text: there is no column 'body'. Columns: eins, zwei."


def test_bad_rows_are_listed_with_their_values(service: Service, tmp_path: Path) -> None:
    file = rows_file(tmp_path, [{"text": "good"}, {"text": 7}, {"text": None}])

    shown = look(service, file)
    without = look(service, file, drop_bad_rows=True)

    assert [(each.place, each.what, each.value) for each in shown.problems] == [
        ("row 2", "text is 7, not text", "7"),
        ("row 3", "text is missing", ""),
    ]
    assert shown.stats == without.stats
    assert shown.stats is not None
    assert (shown.stats.examples, shown.stats.bad) == (1, 2)


def test_preflight_offers_to_leave_bad_rows_out(service: Service, tmp_path: Path) -> None:
    file = rows_file(tmp_path, [*({"text": f"good {n}"} for n in range(9)), {"text": 7}])
    train = rq.Train(name="words", data=file)
    without = rq.Train(name="words", data=file, drop_bad_rows=True)

    refused = service.start(rq.Preflight(train=train, measure=False)).result(120)
    ready = service.start(rq.Preflight(train=without, measure=False)).result(120)

    assert [(each.what, each.droppable) for each in refused.problems] == [
        ("1 of 10 rows cannot be used: row 10: text is 7, not text.", True)
    ]
    assert ready.ready
    assert "1 of 10 rows cannot be used and are left out." in ready.notes


def test_preflight_tells_of_special_tokens_and_of_steps_that_take_everything(
    service: Service, tmp_path: Path
) -> None:
    rows = [*({"text": f"good {n}"} for n in range(9)), {"text": "bad<|end|>"}]
    train = rq.Train(name="words", data=rows_file(tmp_path, rows), eval_share=0.0)

    report = service.start(rq.Preflight(train=train, measure=False)).result(120)

    assert report.ready
    assert report.stats is not None
    assert [note for note in report.notes if "special" in note or "epoch" in note] == [
        "1 of 10 rows contain special tokens of the base, which it reads as control tokens. This "
        "is right only if its chat template wrote these rows.",
        f"One step takes all {report.stats.tokens:,} tokens of the data: each epoch is one step.",
    ]


DIFFERENT = [f"good {n}" for n in range(20)]


@pytest.mark.parametrize(
    ("texts", "share", "why"),
    [
        (["same"] * 20, 0.1, ": the data has fewer than 5 different ones."),
        (DIFFERENT[:4], 0.1, ": the data has fewer than 5 different ones."),
        (DIFFERENT, 0.0, "."),
    ],
    ids=["equal", "few", "as chosen"],
)
def test_why_nothing_is_held_out_is_said(
    service: Service, tmp_path: Path, texts: list[str], share: float, why: str
) -> None:
    file = rows_file(tmp_path, [{"text": text} for text in texts])
    train = rq.Train(name="words", data=file, eval_share=share)

    report = service.start(rq.Preflight(train=train, measure=False)).result(120)

    assert [note for note in report.notes if note.startswith("No examples")] == [
        f"No examples are held out, so the adapter is not tested on unseen examples{why}"
    ]
    double = [note for note in report.notes if "duplicates of earlier ones" in note]
    assert double == (["19 of 20 rows are duplicates of earlier ones."] if "same" in texts else [])


def test_a_run_learns_from_the_rows_that_are_left(service: Service, tmp_path: Path) -> None:
    rows = [{"q": f"Number {n}?", "a": n} for n in range(20)] + [{"q": "Bad?", "a": None}]
    file = rows_file(tmp_path, rows)
    tested = tmp_path / "tested.csv"
    tested.write_text("prompt,completion\nNumber 3?,3\nNumber 50?,50\n", encoding="utf-8")

    result = service.start(
        rq.Train(
            name="numbers",
            data=file,
            columns=rq.Columns(prompt="q", answer="a"),
            held_out=str(tested),
            drop_bad_rows=True,
            epochs=1,
        )
    ).result(timeout=300)

    assert result.evaluation is not None
    assert result.evaluation.examples == 2
    assert result.state == "finished"


def test_large_data_is_first_counted_and_then_prepared(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "QUICK_BYTES", 1000)
    rows = [{"text": f"This is sentence number {n} of them. " * 10} for n in range(1000)]
    rows[700] = {"text": 7}
    file = rows_file(tmp_path, rows)

    first = look(service, file, every_row=False)
    prepared = service.start(rq.PrepareData(data=file)).result(timeout=120)
    afterwards = look(service, file, every_row=False)
    whole = look(service, file)

    assert (first.quick, first.rows, first.bad, len(first.examples)) == (False, 1000, 0, 5)
    assert (prepared.rows, prepared.bad) == (1000, 1)
    assert afterwards.quick
    assert (whole.rows, whole.bad) == (1000, 1)
    assert [each.place for each in whole.problems] == ["row 701"]


def test_a_broken_line_far_down_hides_no_first_row(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "good"}\n' * 50 + "{broken\n", encoding="utf-8")

    first = look(service, str(file), every_row=False, rows=2)
    prepared = service.start(rq.PrepareData(data=str(file))).result(timeout=120)
    whole = look(service, str(file))

    assert (first.rows, len(first.examples)) == (51, 2)
    assert (prepared.rows, prepared.bad) == (51, 1)
    assert [(each.place, each.what) for each in whole.problems] == [
        (
            "row 51",
            "it is not valid JSON (Expecting property name enclosed in double quotes)",
        )
    ]
