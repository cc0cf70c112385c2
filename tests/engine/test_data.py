"""Training data from its file: every shape and format, and every way to err."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from backend.engine import data
from backend.engine.data import DataSet
from backend.errors import DataError, NotFound
from backend.settings import STARTER

Row = dict[str, Any]
TURNS = [
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": "On the mat."},
]
SHAREGPT = [
    {"from": "human", "value": "Where is the cat?"},
    {"from": "gpt", "value": "On the mat."},
]
SHAPES: dict[str, Row] = {
    "messages": {"messages": TURNS},
    "conversations": {"conversations": SHAREGPT},
    "prompt + completion": {"prompt": "Where is the cat?", "completion": "On the mat."},
    "instruction + output": {"instruction": "Where is the cat?", "output": "On the mat."},
    "question + answer": {"question": "Where is the cat?", "answer": "On the mat."},
    "text": {"text": "The cat is on the mat."},
}


def read(path: Path, *, eval_share: float = 0.0, seed: int = 0, **options: Any) -> DataSet:
    """Read every row at once, which else happens as rows are asked for."""
    found = data.read(str(path), eval_share=eval_share, seed=seed, **options)
    assert found.rows >= 0
    return found


def write(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
            writer.writeheader()
            for row in rows:
                cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                writer.writerow(cells)
    return path


# -- shapes and formats --------------------------------------------------------------------------


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


def test_the_reason_for_the_shape_is_told(tmp_path: Path) -> None:
    reasons = {
        shape: read(write(tmp_path / "data.jsonl", [row])).shape_reason
        for shape, row in SHAPES.items()
    }

    assert reasons == {
        "messages": "it has the column messages",
        "conversations": "it has the column conversations",
        "prompt + completion": "it has the columns prompt and completion",
        "instruction + output": "it has the columns instruction and output",
        "question + answer": "it has the columns question and answer",
        "text": "it has the column text",
    }


def test_an_input_follows_its_instruction(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "chat", "output": "cat"}
    without = {**row, "input": ""}

    found = read(write(tmp_path / "data.jsonl", [row, without, {**row, "input": None}]))

    prompts = [document.turns[0]["content"] for document in found.train]
    assert prompts == ["Translate.\n\nchat", "Translate.", "Translate."]


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
    "are not ones that can be learned from. Choose which column is the question and which the "
    "answer, or name them messages, conversations, prompt and completion, instruction (with input) "
    "and output, question and answer, or text."
)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "data.jsonl",
            b'{"text": "a"}\n\n{"text": "b"\n{"text": "c"}\n',
            "data.jsonl, line 3 is not valid JSON: Expecting ',' delimiter. "
            "Each line is one JSON object.",
        ),
        (
            "data.json",
            b'[\n{"text": "a"},\n{"text": b}\n]',
            "data.json, line 3 is not valid JSON: Expecting value. "
            "The file is one list of objects.",
        ),
        (
            "data.json",
            b'{"data": []}',
            "data.json is not a list of examples. Put them into [ ].",
        ),
        ("data.jsonl", b"", "data.jsonl is empty. It needs at least one example."),
        ("data.jsonl", b"\n \n", "data.jsonl is empty. It needs at least one example."),
        ("data.json", b"[]", "data.json is empty. It needs at least one example."),
        ("data.csv", b"prompt,completion\n", "data.csv is empty. It needs at least one example."),
        (
            "data.pdf",
            b"%PDF",
            "data.pdf is not a data file. Use .jsonl, .json, .csv, .tsv, .parquet, .txt, .md.",
        ),
        (
            "data.jsonl",
            '{"text": "é"}'.encode("latin-1"),
            "data.jsonl is not UTF-8 text (byte 10). Save it as UTF-8.",
        ),
        (
            "data.csv",
            "text\nGrüße\n".encode("utf-16"),
            "data.csv is text in UTF-16, whatever its name says. Save it as UTF-8.",
        ),
        (
            "list.parquet",
            b'{"text": "a"}\n',
            "list.parquet is text, whatever its name says. "
            "Use a JSONL, JSON, CSV, TSV, Parquet or text file, each with its own ending.",
        ),
        (
            "many.json",
            b'{"text": "a"}\n{"text": "b"}\n',
            "many.json, line 2 is not valid JSON: Extra data. The file is one list of objects. "
            "One object a line is JSONL: name it .jsonl then.",
        ),
        (
            "data.csv",
            b"prompt,completion\na,b\nc,d,e\n",
            "data.csv, line 3 has more columns than the first line. "
            "Put quotes around text with commas.",
        ),
        (
            "data.csv",
            b'prompt,completion\na,"b"c\n',
            "data.csv, line 2 is not valid CSV: ',' expected after '\"'.",
        ),
        (
            "data.jsonl",
            b'{"frage": "a", "antwort": "b"}\n',
            f"The columns frage, antwort {WRONG_COLUMNS}",
        ),
        ("data.csv", b"prompt;completion\na;b\n", f"The columns prompt;completion {WRONG_COLUMNS}"),
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


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"

    with pytest.raises(NotFound) as caught:
        read(path)

    assert str(caught.value) == (
        f"There is no file {str(path)!r}. Check the path, or upload the file."
    )


@pytest.mark.parametrize("name", ["nothing", "../../backend", "/etc", ""])
def test_an_unknown_bundled_set_lists_the_known_ones(name: str) -> None:
    known = sorted(path.parent.name for path in STARTER.glob("data/*/train.jsonl"))

    with pytest.raises(NotFound) as caught:
        data.read(f"starter:{name}", eval_share=0.1, seed=0)

    assert str(caught.value) == (
        f"There is no bundled data set {name!r}. Bundled: {', '.join(known)}."
    )


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"completion": "b"}, "prompt is missing"),
        ({"prompt": "a", "completion": None}, "completion is missing"),
        ({"prompt": "a", "completion": 5}, "completion is 5, not text"),
        ({"prompt": ["a"], "completion": "b"}, "prompt is ['a'], not text"),
        (["a", "b"], "it is list, not an object"),
        ("text", "it is str, not an object"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_number(
    tmp_path: Path, row: Any, what: str
) -> None:
    found = read(write(tmp_path / "data.jsonl", [SHAPES["prompt + completion"], row]))

    assert [(problem.row, problem.what) for problem in found.problems] == [(2, what)]
    with pytest.raises(DataError) as caught:
        found.require_good()
    assert str(caught.value) == (
        f"1 of 2 rows cannot be used: row 2: {what}. "
        "Mend or remove them, or choose to leave bad rows out."
    )


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ("not json", "messages is not a JSON list"),
        ([], "messages is not a list of turns"),
        ({"role": "user"}, "messages is not a list of turns"),
        (None, "messages is not a list of turns"),
        (["hello"], "a turn has no role and content"),
        ([{"role": "user"}], "a turn has no role and content"),
        ([{"role": "user", "content": 5}], "a turn has no role and content"),
        (
            [{"role": "human", "content": "x"}],
            "the role 'human' is not system, user or assistant",
        ),
        ([{"content": "x"}], "the role None is not system, user or assistant"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_named(
    tmp_path: Path, messages: Any, what: str
) -> None:
    rows = [SHAPES["messages"], {"messages": messages}]

    found = read(write(tmp_path / "data.jsonl", rows))

    assert [(problem.row, problem.what) for problem in found.problems] == [(2, what)]


def test_text_that_no_file_can_hold_is_named_by_its_row(tmp_path: Path) -> None:
    """JSON can spell half a character, which no tokenizer takes."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "good"}\n{"text": "half \\ud83d"}\n', encoding="utf-8")

    found = read(path)

    assert [(problem.row, problem.what) for problem in found.problems] == [
        (2, "text holds half a character (a lone surrogate)")
    ]


def test_many_bad_rows_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    rows = [{"text": "good"}, *({"text": n} for n in range(5))]

    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "data.jsonl", rows)).require_good()

    assert str(caught.value) == (
        "5 of 6 rows cannot be used: row 2: text is 0, not text; row 3: text is 1, not text; "
        "row 4: text is 2, not text and 2 more. Mend or remove them, or choose to "
        "leave bad rows out."
    )


# -- the held-out part ---------------------------------------------------------------------------


def numbered(count: int) -> list[Row]:
    return [{"text": f"example {number}"} for number in range(count)]


def test_the_held_out_part_is_chosen_by_the_seed_alone(tmp_path: Path) -> None:
    rows = numbered(50)
    forwards = write(tmp_path / "a.jsonl", rows)
    backwards = write(tmp_path / "b.jsonl", rows[::-1])

    first = {d.text for d in read(forwards, eval_share=0.2, seed=1).held_out}
    again = {d.text for d in read(backwards, eval_share=0.2, seed=1).held_out}
    other = {d.text for d in read(forwards, eval_share=0.2, seed=2).held_out}

    assert len(first) == 10
    assert first == again
    assert first != other


def test_no_held_out_example_is_learned(tmp_path: Path) -> None:
    found = read(write(tmp_path / "data.jsonl", numbered(20) * 3), eval_share=0.3, seed=0)

    learned, kept = {d.key for d in found.train}, {d.key for d in found.held_out}
    assert not learned & kept
    assert (len(found.train), len(found.held_out)) == (42, 18)


@pytest.mark.parametrize(
    ("count", "share", "held_out"), [(4, 0.5, 0), (5, 0.01, 1), (50, 0.0, 0), (50, 0.1, 5)]
)
def test_too_few_examples_spare_none(
    tmp_path: Path, count: int, share: float, held_out: int
) -> None:
    found = read(write(tmp_path / "data.jsonl", numbered(count)), eval_share=share)

    assert (len(found.train), len(found.held_out)) == (count - held_out, held_out)
