"""JSON as people have it: lists, objects one after the other, tables by columns, broken values."""

import json
from pathlib import Path
from typing import Any

import pytest

from backend.engine.data_files.file_readers import Broken, count_rows, notes, read_rows
from backend.engine.data_files.sources import open_source
from backend.errors import DataError
from backend.files.unpacking import DataFile

ROWS = [{"prompt": f"q{number}", "completion": f"a{number}\n{{"} for number in range(60)]
LIST = json.dumps(ROWS)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def rows(path: Path) -> list[Any]:
    found = [row for _, row in read_rows(path, path.name)]
    assert count_rows(path, path.name) == len(found)
    return found


def said(path: Path) -> tuple[str, ...]:
    return notes(DataFile(path, path.name))


LISTS = "is read as JSON: it holds a list."
OBJECTS = "is read as JSON: it holds objects one after the other."
LINES = "is read as JSONL: one object per line."


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("data.jsonl", LIST, LISTS),
        ("data.jsonl", json.dumps(ROWS, indent=2), LISTS),
        ("data.jsonl", "[\n" + ",\n".join(map(json.dumps, ROWS)) + ",\n]\n", LISTS),
        ("data.ndjson", "".join(json.dumps(row, indent=1) + "\n" for row in ROWS), OBJECTS),
        ("data.jsonlines", ",\n".join(json.dumps(row, indent=4) for row in ROWS), OBJECTS),
        ("data.json", "".join(json.dumps(row, indent=1) + "\n" for row in ROWS), OBJECTS),
        ("data.json", "".join(json.dumps(row) + "\n" for row in ROWS), LINES),
        ("data.json", json.dumps(ROWS[:20]) + "\n" + json.dumps(ROWS[20:]), ""),
        ("data.json", "[" + " ".join(map(json.dumps, ROWS)) + "]", ""),
        ("data.ndjson", "\n\ufeff".join(map(json.dumps, ROWS)), ""),
        ("data.txt", "\n\n".join(map(json.dumps, ROWS)), "is read as JSONL: each of its lines"),
    ],
)
def test_json_under_any_name_is_read(tmp_path: Path, name: str, text: str, note: str) -> None:
    path = written(tmp_path / name, text)

    assert rows(path) == ROWS
    assert [note in each for each in said(path)] == ([True] if note else [])


LABELS = [str(number) for number in range(60)]
COLUMNS = {key: [row[key] for row in ROWS] for key in ROWS[0]}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize(
    "table",
    [
        {key: dict(zip(LABELS, cells, strict=True)) for key, cells in COLUMNS.items()},
        dict(zip(LABELS, ROWS, strict=True)),
        COLUMNS,
        {
            "columns": ["prompt", "completion"],
            "index": list(range(60)),
            "data": [list(row.values()) for row in ROWS],
        },
    ],
)
def test_tables_by_columns_or_labels_are_turned_into_rows(
    tmp_path: Path, name: str, table: dict[str, Any]
) -> None:
    path = written(tmp_path / name, json.dumps(table))

    assert rows(path) == ROWS
    (note,) = said(path)
    assert note.startswith(f"{name} is read as ")


TURNS = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS, "completion": TURNS},
        {"messages": TURNS, "tools": [{"name": "f"}]},
        {"prompt": "a", "completion": "b", "score": 0.5},
    ],
)
def test_an_object_that_is_one_row_stays_one(tmp_path: Path, row: dict[str, Any]) -> None:
    path = written(tmp_path / "data.json", json.dumps(row))

    assert rows(path) == [row]
    assert said(path) == ()


def test_lists_for_training_and_tests_are_told_apart(tmp_path: Path) -> None:
    path = written(
        tmp_path / "data.json",
        json.dumps({"train": ROWS[:50], "validation": ROWS[50:55], "test": ROWS[55:]}),
    )

    source = open_source(str(path))

    assert [row for _, row in source.tables[0].rows()] == ROWS[:50]
    assert [row for _, row in source.held_out[0].rows()] == ROWS[50:55]
    assert source.held_out[0].count() == 5
    assert source.tables[0].digest() != source.held_out[0].digest()
    assert source.tables[0].notes == (
        "Held out is the validation part of data.json: validation.",
        "The test part of data.json is not used, so that it is new at the end: test.",
    )


def test_lists_with_the_same_columns_are_joined_and_others_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "data.json", json.dumps({"a": ROWS[:9], "b": ROWS[9:], "tags": [1]}))
    assert rows(path) == ROWS
    assert said(path) == (
        "data.json also has lists without rows, which are left out: tags.",
        "The rows of 2 lists in data.json are read: a, b.",
    )

    written(path, json.dumps({"rows": ROWS, "people": [{"name": "x"}]}) + " ")
    with pytest.raises(DataError) as caught:
        rows(path)
    assert str(caught.value) == (
        "data.json has lists with different columns: rows (prompt, completion); people (name). "
        "Keep one of them in the file."
    )


def indented(row: Any) -> str:
    return " " + json.dumps(row, indent=1).replace("\n", "\n ")


@pytest.mark.parametrize("form", [json.dumps, indented])
@pytest.mark.parametrize(
    "bad",
    [
        '{"prompt": x}',
        '{"prompt": "q",}',
        '{"prompt": "it"s"}',
        '{"prompt": "open}',
        '{"prompt": "q"',
        '{"prompt": ["q"}',
        '{"prompt": "a\tb"}',
        '{"prompt": "a\0b"}',
        "{'prompt': 'q'}",
        '{"prompt": ' + "[" * 3000 + "]" * 3000 + "}",
        '{"n": ' + "1" * 5000 + "}",
        "oops",
    ],
)
def test_a_bad_element_is_one_bad_row(tmp_path: Path, form: Any, bad: str) -> None:
    lines = [form(row) for row in ROWS]
    lines[9] = (" " if form is indented else "") + bad
    path = written(tmp_path / "data.json", "[\n" + ",\n".join(lines) + "\n]")

    found = rows(path)

    assert [row for row in found if not isinstance(row, Broken)] == ROWS[:9] + ROWS[10:]
    assert isinstance(found[9], Broken)
    assert len(found) == 60


def test_a_bad_object_among_others_is_one_bad_row(tmp_path: Path) -> None:
    texts = [json.dumps(row, indent=1) for row in ROWS]
    texts[0] = texts[0].replace('"q0"', "q0")
    texts[30] = texts[30].replace('"q30"', '"q30')
    path = written(tmp_path / "data.jsonl", "\n".join(texts))

    found = list(read_rows(path, path.name))

    assert [number for number, row in found if isinstance(row, Broken)] == [1, 30 * 4 + 1]
    assert [row for _, row in found if not isinstance(row, Broken)] == ROWS[1:30] + ROWS[31:]


def test_a_file_that_is_cut_off_has_one_bad_row(tmp_path: Path) -> None:
    path = written(tmp_path / "data.json", json.dumps(ROWS, indent=1)[:-12])
    assert [isinstance(row, Broken) for row in rows(path)] == [False] * 59 + [True]

    written(path, json.dumps(ROWS)[:-1])
    *good, last = rows(path)
    assert good == ROWS
    assert last.what == "the list ends without a bracket: the file may be cut off"
