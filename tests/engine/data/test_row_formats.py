"""What rows are: recognised with a reason, or chosen; and what is wrong with one."""

from pathlib import Path
from typing import Any

import pytest

from backend.errors import DataError
from backend.requests import Columns
from tests.engine.written_files import SHAPES, TURNS, Row, read, write


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


# -- what is wrong with a row ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"completion": "b"}, "prompt is missing"),
        ({"prompt": "a", "completion": None}, "completion is missing"),
        ({"prompt": 5, "completion": "b"}, "prompt is 5, not text"),
        ({"prompt": ["a", "b"], "completion": "b"}, "prompt is ['a', 'b'], not text"),
        (["a", "b"], "it has no named columns"),
        ("text", "it has no named columns"),
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
        "Fix or remove them, or choose to leave bad rows out."
    )


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ("not json", "messages is not a JSON list"),
        ([], "messages is an empty list"),
        ({"role": "user"}, "messages is not a list of turns"),
        (None, "messages is not a list of turns"),
        (["hello"], "a turn has no role and content"),
        ([{"role": "user"}], "a turn has no role and content"),
        ([{"role": "user", "content": 5}], "a turn has no text as its content"),
        (
            [{"role": "poet", "content": "x"}],
            "the role 'poet' is not system, user, assistant or tool",
        ),
        ([{"content": "x"}], "the role None is not system, user, assistant or tool"),
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
        "row 4: text is 2, not text and 2 more. Fix or remove them, or choose to "
        "leave bad rows out."
    )


def test_a_row_tells_the_value_that_is_wrong(tmp_path: Path) -> None:
    rows: list[Row] = [SHAPES["text"], {"text": 5}, {"text": ["word"] * 50}]

    found = read(write(tmp_path / "data.jsonl", rows))

    short, long = (problem.value for problem in found.problems)
    assert short == "5"
    assert long.startswith("['word', 'word', ")
    assert len(long) == 80 + len("...")


# -- conversations -------------------------------------------------------------------------------


def test_sharegpt_roles_become_those_of_every_template(tmp_path: Path) -> None:
    names = ("system", "human", "gpt", "user", "assistant")
    turns = [{"from": name, "value": name} for name in names]

    found = read(write(tmp_path / "data.jsonl", [{"conversations": turns}]))

    assert [(turn["role"], turn["content"]) for turn in found.train[0].turns] == [
        ("system", "system"),
        ("user", "human"),
        ("assistant", "gpt"),
        ("user", "user"),
        ("assistant", "assistant"),
    ]


@pytest.mark.parametrize(
    ("turn", "what"),
    [
        (
            {"from": "narrator", "value": "x"},
            "the role 'narrator' is not human, gpt, system, function_call or observation",
        ),
        ({"from": "human", "value": None}, "a turn has no text as its value"),
        ({"from": "human"}, "a turn has no role and content"),
        ({"from": "gpt", "value": "\ud83d"}, "a turn holds half a character (a lone surrogate)"),
    ],
)
def test_a_sharegpt_turn_that_cannot_be_used_is_named(tmp_path: Path, turn: Row, what: str) -> None:
    rows = [SHAPES["conversations"], {"conversations": [turn]}]

    found = read(write(tmp_path / "data.jsonl", rows))

    assert [(problem.row, problem.what) for problem in found.problems] == [(2, what)]


@pytest.mark.parametrize(
    "shape", ["conversations", "prompt + completion", "instruction + output", "question + answer"]
)
def test_a_system_column_is_said_first(tmp_path: Path, shape: str) -> None:
    rows = [{**SHAPES[shape], "system": "Be kind."}, {**SHAPES[shape], "system": ""}]

    found = read(write(tmp_path / "data.jsonl", rows))

    assert found.parts[0].shape.uses(rows[0])["system"] == "the system prompt"
    assert [document.turns for document in found.train] == [
        [{"role": "system", "content": "Be kind."}, *TURNS],
        TURNS,
    ]


def test_two_system_prompts_are_not_one(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "Be brief."}, *SHAPES["conversations"]["conversations"]]

    found = read(write(tmp_path / "data.jsonl", [{"system": "Be kind.", "conversations": turns}]))

    assert [(problem.what, problem.value) for problem in found.problems] == [
        ("it has a system prompt in system and another in its turns", "'Be kind.'")
    ]


# -- columns that somebody chose -----------------------------------------------------------------


def test_any_columns_can_be_question_and_answer(tmp_path: Path) -> None:
    rows = [{"frage": "Where is the cat?", "antwort": "On the mat.", "ton": "Be kind."}]
    path = write(tmp_path / "data.csv", rows)

    found = read(path, columns=Columns(prompt="frage", answer="antwort", system="ton"))

    assert found.shape == "chosen columns"
    assert found.shape_reason == (
        "you chose frage as question, antwort as answer, ton as system prompt"
    )
    assert found.train[0].turns == [{"role": "system", "content": "Be kind."}, *TURNS]


def test_any_column_can_be_text_or_a_conversation(tmp_path: Path) -> None:
    rows: list[Row] = [{"body": "The cat.", "dialogue": TURNS}]
    path = write(tmp_path / "data.jsonl", rows)

    assert read(path, columns=Columns(text="body")).train[0].text == "The cat."
    assert read(path, columns=Columns(conversation="dialogue")).train[0].turns == TURNS


def test_a_choice_goes_before_what_is_recognised(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "better": "c"}]

    found = read(
        write(tmp_path / "data.jsonl", rows), columns=Columns(prompt="prompt", answer="better")
    )

    assert [turn["content"] for turn in found.train[0].turns] == ["a", "c"]


def test_numbers_in_a_chosen_column_are_text(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"q": "Two and two?", "a": 4},
        {"q": "Half?", "a": 0.5},
        {"q": "Is it?", "a": True},
    ]

    found = read(write(tmp_path / "data.jsonl", rows), columns=Columns(prompt="q", answer="a"))

    assert [document.turns[1]["content"] for document in found.train] == ["4", "0.5", "true"]


def test_a_chosen_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"q": "a", "a": "b"}])

    with pytest.raises(DataError) as caught:
        read(path, columns=Columns(prompt="q", answer="reply"))

    assert str(caught.value) == "Answer: there is no column 'reply'. Columns: q, a."
