"""A data file as rows: every format, and every way to err."""

import json
import re
from pathlib import Path

import pytest

from backend.engine.data_files.file_readers import READERS, Broken, count_rows, notes, read_rows
from backend.errors import DataError
from backend.files.unpacking import PACKINGS, ZIP, DataFile
from backend.files.uploads import DATA_FORMATS, PACKED_SUFFIXES
from tests.engine.written_files import SHAPES, TURNS, read, write

# -- formats --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_from_every_format(tmp_path: Path, shape: str, suffix: str) -> None:
    found = read(write(tmp_path / f"data{suffix}", [SHAPES[shape]] * 2))

    assert (found.shape, found.rows, found.problems) == (shape, 2, [])
    (document,) = {document.key for document in found.train}
    if shape == "text":
        assert document == "The cat is on the mat."
    else:
        assert json.loads(document) == TURNS


def test_a_json_file_that_is_one_conversation_is_one_example(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(SHAPES["messages"]), encoding="utf-8")

    assert [document.turns for document in read(path).train] == [TURNS]


def test_an_upper_case_suffix_and_other_columns_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "DATA.JSONL"
    path.write_text('{"id": 7, "text": "x", "score": 0.5}\n', encoding="utf-8")

    assert [document.text for document in read(path).train] == ["x"]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [SHAPES["text"]])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert read(path).train[0].text == "The cat is on the mat."


def test_windows_line_ends_and_blank_lines_keep_the_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n\r\n  \r\n{"text": "b"}\r\n')

    assert [(d.row, d.text) for d in read(path).train] == [(1, "a"), (4, "b")]


def test_a_line_separator_inside_json_is_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "one\u2028two\u0085three\x1cfour"}\n', encoding="utf-8")

    with pytest.raises(DataError, match="Invalid control character"):  # JSON forbids \x1c alone
        read(path)
    path.write_text('{"text": "one\u2028two\u0085three"}\n', encoding="utf-8")
    assert read(path).train[0].text == "one\u2028two\u0085three"


def test_cells_of_several_lines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(
        'prompt,completion\n"one, two\nthree","say ""yes"""\nplain,answer\n', encoding="utf-8"
    )

    found = read(path)

    assert [document.turns[0]["content"] for document in found.train] == [
        "one, two\nthree",
        "plain",
    ]
    assert found.train[0].turns[1]["content"] == 'say "yes"'
    assert [document.row for document in found.train] == [3, 4]


def test_a_line_separator_inside_a_cell_is_no_row_end(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion\none\u2028two\x0cthree,\x85yes\n", encoding="utf-8")

    found = read(path)

    assert found.problems == []
    assert [[t["content"] for t in document.turns] for document in found.train] == [
        ["one\u2028two\x0cthree", "\x85yes"]
    ]


def test_a_long_cell_is_read_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", [{"text": "word " * 60_000}])

    assert len(read(path).train[0].text) == 300_000


# -- what is wrong, in words ---------------------------------------------------------------------

WRONG_COLUMNS = (
    "is recognised as training text. Choose which column is the question and which the "
    "answer, or name them messages, conversations, prompt and completion, instruction (with input) "
    "and output, question and answer, or text."
)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "data.jsonl",
            b'{"text": "b"\n{"text": "c"\n',
            "No row can be read. The first one: it is not valid JSON "
            '(Expecting \',\' delimiter). A row looks like {"prompt": "...", "completion": '
            '"..."}.',
        ),
        (
            "data.json",
            b'[{"text": "a"}, {"text": "b", {"text": "c"}]',
            "data.json, line 1 is not valid JSON: Expecting property name enclosed in double "
            "quotes. A .json file holds one list of objects.",
        ),
        (
            "data.json",
            b'{"data": []}',
            "data.json is not a list of examples. Write it as "
            '[{"prompt": "...", "completion": "..."}, ...].',
        ),
        ("data.jsonl", b"", "data.jsonl is empty. It needs at least one example."),
        ("data.jsonl", b"\n \n", "data.jsonl has no rows. It needs at least one example."),
        ("data.json", b"[]", "data.json has no rows. It needs at least one example."),
        (
            "data.csv",
            b"prompt,completion\n",
            "data.csv has no rows. It needs at least one example.",
        ),
        (
            "data.pdf",
            b"%PDF",
            "data.pdf is not a data file. Use .jsonl, .json, .csv, .tsv, .parquet, .txt, .md, "
            ".ndjson, .jsonlines, .arrow.",
        ),
        (
            "list.parquet",
            b'{"text": "a"}\n',
            "list.parquet is text, although its name says otherwise. "
            "Use a JSONL, JSON, CSV, TSV, Parquet or text file, with the matching extension.",
        ),
        (
            "data.csv",
            b'prompt,"completion\na,b\n',
            "The first line of data.csv, which names the columns, cannot be read: its quotation "
            "mark is never closed, or closed in a wrong place. "
            "Check its quotation marks and its length.",
        ),
        (
            "data.jsonl",
            b'{"eins": "a", "zwei": "b"}\n',
            f"None of the columns (eins, zwei) {WRONG_COLUMNS}",
        ),
        (
            "data.jsonl",
            b'"a"\n5\n',
            "The rows are not objects with named columns. "
            'A row looks like {"prompt": "...", "completion": "..."}.',
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError) as caught:
        read(path)

    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "data.csv",
            b"text,text\na,b\n",
            "data.csv has two columns called 'text'. Give each its own name.",
        ),
        ("data.txt", b" \n\n", "data.txt has no rows. It needs at least one example."),
        ("deep.json", b"[" * 200_000, None),
    ],
)
def test_a_file_of_a_later_format_says_where_and_why(
    tmp_path: Path, name: str, content: bytes, sentence: str | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError) as caught:
        read(path)

    if sentence is None:
        assert str(caught.value).startswith(f"{name} is not valid JSON: maximum recursion depth")
    else:
        assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("name", "content", "row", "what", "value"),
    [
        (
            "data.jsonl",
            '{"text": "a"}\n\n{"text": "b"\n{"text": "c"}\n',
            3,
            "it is not valid JSON (Expecting ',' delimiter)",
            '{"text": "b"',
        ),
        (
            "data.jsonl",
            'not JSON\n{"text": "a"}\n{"text": "c"}\n',
            1,
            "it is not valid JSON (Expecting value)",
            "not JSON",
        ),
        (
            "data.csv",
            "prompt,completion\na,b\nc,d,e\nf,g\n",
            3,
            "it has more columns than the first line (text with commas needs quotes around it)",
            "['e']",
        ),
        (
            "data.tsv",
            'prompt\tcompletion\na\t"b"c\nd\te\nf\tg\n',
            2,
            "it is not valid TSV ('\t' expected after '\"')",
            'b"c',
        ),
        (
            "data.tsv",
            "prompt\tcompletion\na\tb\tc\nd\te\nf\tg\n",
            2,
            "it has more columns than the first line (text with tabs needs quotes around it)",
            "['c']",
        ),
    ],
)
def test_a_broken_row_is_named_and_those_after_it_are_read(
    tmp_path: Path, name: str, content: str, row: int, what: str, value: str
) -> None:
    path = tmp_path / name
    path.write_text(content)

    found = read(path)

    assert len(found.train) == 2
    (problem,) = found.problems
    assert (problem.row, problem.what) == (row, what)
    assert value in problem.value
    with pytest.raises(DataError) as caught:
        found.require_good()
    assert str(caught.value) == (
        f"1 of 3 rows cannot be used: row {row}: {what}. "
        "Fix or remove them, or choose to leave bad rows out."
    )


def test_a_wrong_byte_far_into_a_file_makes_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = '{"text": "é and more"}\n'.encode() * 100_000
    path.write_bytes(good + b'{"text": "\xe9"}\n{"text": "last"}\n')

    rows = list(read_rows(path, path.name))

    assert rows[-1] == (100_002, {"text": "last"})
    assert rows[-2] == (
        100_001,
        Broken(
            "it has bytes that do not fit the encoding of the rest of the file",
            '{"text": "\N{REPLACEMENT CHARACTER}"}',
        ),
    )
    assert notes(DataFile(path, path.name)) == ()


@pytest.mark.parametrize("name", ["story.txt", "story.md"])
def test_paragraphs_of_a_text_file_are_the_examples(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf\r\n  One day\r\nit rained.\r\n \r\n\r\nThen the sun came.")

    found = read(path)

    assert found.shape == "text"
    assert [(d.row, d.text) for d in found.train] == [
        (2, "  One day\nit rained."),
        (6, "Then the sun came."),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"])
def test_rows_are_counted_as_they_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".txt":
        path.write_text("one\n\ntwo\n\n\nthree\n", encoding="utf-8")
    else:
        write(path, [{"text": "one\n\ntwo"}, {"text": "three"}, {"text": ""}])

    assert count_rows(path, path.name) == len(list(read_rows(path, path.name))) == 3


def test_whatever_can_be_read_can_be_uploaded() -> None:
    assert tuple(READERS) == DATA_FORMATS
    assert (*PACKINGS, ZIP) == PACKED_SUFFIXES


@pytest.mark.parametrize("between", [";", "\t"])
def test_a_csv_file_may_have_something_else_between_its_columns(
    tmp_path: Path, between: str
) -> None:
    path = tmp_path / "excel.csv"
    path.write_text(f'prompt{between}completion\nHi, you{between}"a{between}b"\n', encoding="utf-8")

    assert [row for _, row in read_rows(path, path.name)] == [
        {"prompt": "Hi, you", "completion": f"a{between}b"}
    ]


def test_the_only_list_of_objects_in_a_json_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"version": 2, "tags": [], "rows": [SHAPES["text"]]}))

    assert len(read(path).train) == 1


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("data.json", b"", "data.json is empty"),
        (
            "data.json",
            b'["a',
            "line 1 is not valid JSON: Unterminated string starting at column 2.",
        ),
    ],
)
def test_the_sentence_is_whole_and_its_advice_helps(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError, match=re.escape(sentence)):
        read(path)


def test_paragraphs_are_said_to_be_the_examples(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("one\nmore\n\ntwo\n")

    found = read(path)

    assert len(found.train) == 2
    assert found.shape_reason == "it is plain text: blank lines separate the examples"
