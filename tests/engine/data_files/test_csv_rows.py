"""CSV and TSV as people have them: separators, quotation marks, names, wrong rows."""

from pathlib import Path
from typing import Any

import pytest

from backend.engine.data_files import csv_rows
from backend.engine.data_files.file_readers import Broken, Numbered, count_rows, read_rows, rows_of
from backend.engine.data_files.file_readers import notes as notes_of
from backend.errors import DataError
from backend.files import read_limits
from backend.files.unpacking import DataFile

OPEN = "its quotation mark is never closed, or closed in a wrong place"


def rows(path: Path, text: str) -> list[Numbered]:
    path.write_text(text, encoding="utf-8", newline="")
    found = list(read_rows(path, path.name))
    assert count_rows(path, path.name) == len(found)
    return found


def notes(path: Path) -> list[str]:
    return list(csv_rows.notes(DataFile(path, path.name)))


def sixty(line: str, *, quoted: bool = False) -> str:
    """Return a file of sixty rows with another line in place of the tenth."""
    form = '"q{0}","a, {0}"' if quoted else "q{0},a{0}"
    lines = [form.format(number) for number in range(1, 61)]
    lines[9] = line
    return "prompt,completion\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize(
    "line", ['"q10","a10', 'q10,"a10', '"q10,a10', 'q10,"a"10', '"q"10,a10', 'q10,"a""10', 'q10,"']
)
def test_a_wrong_quotation_mark_is_one_bad_row(tmp_path: Path, line: str, quoted: bool) -> None:
    found = rows(tmp_path / "data.csv", sixty(line, quoted=quoted))

    answer = "a, {}" if quoted else "a{}"
    good = [
        (number + 1, {"prompt": f"q{number}", "completion": answer.format(number)})
        for number in range(1, 61)
        if number != 10
    ]
    assert [each for each in found if not isinstance(each[1], Broken)] == good
    ((number, bad),) = [each for each in found if isinstance(each[1], Broken)]
    assert (number, bad.value) == (11, line)


def test_rows_of_several_lines_after_an_open_quotation_mark_are_read(tmp_path: Path) -> None:
    text = 'prompt,completion\nq1,"open\nq2,a2\nq3,"one\ntwo, three\n\nfour"\nq4,a4\n'

    assert rows(tmp_path / "data.csv", text) == [
        (2, Broken(OPEN, 'q1,"open')),
        (3, {"prompt": "q2", "completion": "a2"}),
        (7, {"prompt": "q3", "completion": "one\ntwo, three\n\nfour"}),
        (8, {"prompt": "q4", "completion": "a4"}),
    ]


def test_no_part_of_a_cell_with_wrong_marks_inside_becomes_a_row(tmp_path: Path) -> None:
    text = 'prompt,completion\nq1,"one\nhe said "hi", loudly\nend"\nq2,a2\nq3\n'

    found = rows(tmp_path / "data.csv", text)

    assert [number for number, row in found if isinstance(row, Broken)] == [2, 3, 4]
    assert found[-2:] == [
        (5, {"prompt": "q2", "completion": "a2"}),
        (6, {"prompt": "q3", "completion": None}),  # as ever: its own format decides
    ]


def test_a_quotation_mark_that_is_never_closed_ends_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_limits, "CSV_ROW_LINES", 20)

    found = rows(tmp_path / "data.csv", sixty('q10,"a10'))

    assert len(found) == 60
    assert [row for _, row in found if isinstance(row, Broken)] == [Broken(OPEN, 'q10,"a10')]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sep=;\nprompt;completion\na,b;c\n", {"prompt": "a,b", "completion": "c"}),
        ('"sep=|"\r\nprompt|completion\r\na,b|c\r\n', {"prompt": "a,b", "completion": "c"}),
        ("sep=,\nprompt,completion\na;b,c\n", {"prompt": "a;b", "completion": "c"}),
        ("prompt;completion\na,b;c\n", {"prompt": "a,b", "completion": "c"}),
        ("prompt|completion\na,b|c;d\n", {"prompt": "a,b", "completion": "c;d"}),
        ("prompt\tcompletion\na,b\tc\n", {"prompt": "a,b", "completion": "c"}),
        (
            '"question, in words";answer\na,b;c\n',
            {"question, in words": "a,b", "answer": "c"},
        ),
        ('"a;b",completion\nx,y\n', {"a;b": "x", "completion": "y"}),
        ("question, in words;answer\na;c\nb;d\n", {"question, in words": "a", "answer": "c"}),
        ("text\nHello; you\n", {"text": "Hello; you"}),
    ],
)
def test_what_separates_columns_is_found(
    tmp_path: Path, text: str, expected: dict[str, str]
) -> None:
    assert rows(tmp_path / "data.csv", text)[0][1] == expected


def test_a_separator_other_than_the_usual_is_said(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    rows(path, "prompt|completion\na|b\n")
    assert notes(path) == ["The columns of data.csv are separated by vertical bars."]

    rows(path, "prompt,completion\na,b\n")
    assert notes(path) == []


def test_blanks_around_names_and_before_quotation_marks_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"

    assert rows(path, '\n prompt , completion\n"a", "b, c"\n"d", "e"\n') == [
        (3, {"prompt": "a", "completion": "b, c"}),
        (4, {"prompt": "d", "completion": "e"}),
    ]
    assert notes(path) == [
        "Blanks before the cells of data.csv are left out, as quotation marks follow them."
    ]


def test_blanks_at_the_beginning_of_cells_stay(tmp_path: Path) -> None:
    text = 'prompt,completion\nq, a\n"he said, ""yes""", b\n'

    assert [row["completion"] for _, row in rows(tmp_path / "data.csv", text)] == [" a", " b"]


def test_columns_without_a_name_get_one(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"

    ((_, row),) = rows(path, "prompt,completion,,\na,b,,\n")

    assert row == {"prompt": "a", "completion": "b", "column 3": "", "column 4": ""}
    assert notes(path) == ["Column 3 of data.csv has no name in the first line."]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has two columns called 'text'"):
        rows(tmp_path / "data.csv", "text, text\na,b\n")


def test_a_nul_makes_one_bad_row(tmp_path: Path) -> None:
    found = rows(tmp_path / "data.csv", sixty("q10,a\0b"))

    assert [(number, row) for number, row in found if isinstance(row, Broken)] == [
        (11, Broken("it contains a NUL character, which text never has", "q10,a\0b"))
    ]
    assert len(found) == 60


# -- files that are not what their first line says -----------------------------------------------


def told(tmp_path: Path, content: str) -> tuple[list[Any], tuple[str, ...]]:
    path = tmp_path / "data.csv"
    path.write_text(content, encoding="utf-8")
    file = DataFile(path, path.name)
    return [row for _, row in rows_of(file)], notes_of(file)


def test_jsonl_that_is_called_csv_is_read_as_jsonl(tmp_path: Path) -> None:
    found, said = told(tmp_path, '{"prompt": "a, b", "completion": "c"}\n' * 3)

    assert found == [{"prompt": "a, b", "completion": "c"}] * 3
    assert said == ("data.csv is read as JSONL: each of its lines is a JSON object.",)


@pytest.mark.parametrize("blank", ["", "\n"])
def test_a_title_above_the_names_is_left_out(tmp_path: Path, blank: str) -> None:
    content = f"My export of 2024\n{blank}prompt,response\n" + "Why?,Because.\n" * 5

    found, said = told(tmp_path, content)

    assert found == [{"prompt": "Why?", "response": "Because."}] * 5
    assert said == ("The first line of data.csv is left out, as a title: My export of 2024.",)


def test_one_column_with_commas_in_its_text_has_no_title(tmp_path: Path) -> None:
    found, said = told(tmp_path, "my text\n" + '"one, two and three, four"\n' * 5)

    assert found == [{"my text": "one, two and three, four"}] * 5
    assert said == ()


def test_a_first_line_that_looks_like_a_row_is_said(tmp_path: Path) -> None:
    _, said = told(tmp_path, "What is the colour of 1?,Blue\nWhat is the colour of 2?,Red\n")

    assert said == (
        "The first line of data.csv looks like a row, and is read as the names of the columns. "
        "If it is one, add a line with names above it.",
    )
