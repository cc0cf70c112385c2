"""Data in the shapes that people have, fifty rows each: what each column is read as, and the rows.

Every column is accounted for, and rows that are not examples to learn from are named.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from backend.engine.data import dataset, placeholders
from backend.engine.data.dataset import Document, Noticed
from backend.engine.data.unfit_rows import Unfit
from backend.requests import Columns
from backend.results import RowProblem
from tests.engine.data.public_shapes import PREFERENCES, ROWS, SHAPES, Said, Shape, asked, turns
from tests.engine.written_files import Row, write


class Read(NamedTuple):
    """A file as it was read."""

    documents: list[Document]
    problems: list[RowProblem]
    uses: dict[str, str]
    noticed: Noticed


def read(folder: Path, rows: list[Row], *, name: str = "rows.jsonl", **options: Any) -> Read:
    found = dataset.read(str(write(folder / name, rows)), eval_share=0.0, seed=0, **options)
    noticed, problems = Noticed(), []
    documents = list(found.parts[0].documents(problems.append, noticed))
    return Read(documents, problems, found.parts[0].shape.uses(noticed.columns), noticed)


def said(document: Document) -> Said:
    return [(turn["role"], turn["content"]) for turn in document.turns]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rows_are_read_and_each_column_is_accounted_for(shape: Shape, tmp_path: Path) -> None:
    found = read(tmp_path, [shape.row(n) for n in range(ROWS)])

    assert found.uses == shape.uses
    assert found.problems == []
    assert [said(document) for document in found.documents] == [shape.said(n) for n in range(ROWS)]


@pytest.mark.parametrize("extension", [".json", ".parquet", ".csv"])
def test_a_shape_does_not_depend_on_the_kind_of_file(extension: str, tmp_path: Path) -> None:
    shape = SHAPES["history of pairs and a system prompt (LLaMA-Factory, ms-swift)"]

    found = read(tmp_path, [shape.row(n) for n in range(ROWS)], name=f"rows{extension}")

    assert (found.uses, found.problems) == (shape.uses, [])
    assert said(found.documents[7]) == shape.said(7)


@pytest.mark.parametrize(
    "role",
    ["ChatGPT", "bing", "bard", "model", "bot", "AI", "Assistant", "GPT", "gpt-4o", "ASSISTANT "],
)
def test_the_assistant_has_many_names(role: str, tmp_path: Path) -> None:
    found = read(tmp_path, [{"messages": turns(n, names="User ASSISTANT")} for n in range(ROWS)])
    named = [{"role": "user", "content": "?"}, {"role": role, "content": "!"}]

    assert said(found.documents[0]) == asked(0)
    assert said(read(tmp_path, [{"messages": named}]).documents[0])[1] == ("assistant", "!")


# -- rows that are not for this --------------------------------------------------------------------


@pytest.mark.parametrize(("row", "instead"), PREFERENCES.values(), ids=PREFERENCES)
def test_preference_pairs_are_named_with_what_can_be_learned_now(
    row: Callable[[int], Row], instead: Columns, tmp_path: Path
) -> None:
    rows = [row(n) for n in range(ROWS)]

    with pytest.raises(Unfit, match="These rows are preference pairs") as caught:
        read(tmp_path, rows)

    assert caught.value.instead == instead
    found = read(tmp_path, rows, columns=instead)
    assert found.problems == []
    assert [said(document) for document in found.documents] == [asked(n) for n in range(ROWS)]


def test_conversations_written_as_one_text_are_taken_apart(tmp_path: Path) -> None:
    chosen = "\n\nHuman: Hello?\n\nAssistant: Hi.\n\nHuman: Bye.\n\nAssistant: Bye!"
    rows = [{"chosen": chosen, "rejected": "\n\nHuman: Hello?\n\nAssistant: No."}] * ROWS

    with pytest.raises(Unfit) as caught:
        read(tmp_path, rows)

    assert caught.value.instead == Columns(conversation="chosen")
    assert said(read(tmp_path, rows, columns=caught.value.instead).documents[0]) == [
        ("user", "Hello?"), ("assistant", "Hi."), ("user", "Bye."), ("assistant", "Bye!")
    ]  # fmt: skip


def test_a_preference_pair_among_other_rows_is_a_bad_row(tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": "?", "completion": "!"}] * ROWS
    rows[7] = {**rows[7], "rejected": "No."}

    found = read(tmp_path, rows)

    assert [(problem.row, problem.what) for problem in found.problems] == [
        (8, "it is a preference pair, with a worse answer in rejected")
    ]


@pytest.mark.parametrize(
    ("first", "instead"),
    [
        ({"prompt": "?", "completion": "!"}, Columns(prompt="prompt", answer="completion")),
        ({"messages": turns(0)}, Columns(conversation="messages")),
    ],
)
@pytest.mark.parametrize(("column", "kind"), [("label", bool), ("kto_tag", str), ("Label", int)])
def test_answers_rated_bad_are_never_learned(
    first: Row, instead: Columns, column: str, kind: type, tmp_path: Path
) -> None:
    rows = [{**first, column: kind(n % 2)} for n in range(ROWS)]

    with pytest.raises(Unfit, match=f"rate their answers as good or bad, in {column}") as caught:
        read(tmp_path, rows)

    assert caught.value.instead == instead
    found = read(tmp_path, rows, columns=instead)
    assert found.uses[column] == "the rating: answers rated bad have no loss"
    learned = ["unlearned" not in document.turns[-1] for document in found.documents]
    assert learned == [bool(n % 2) for n in range(ROWS)]


def test_rows_that_are_single_turns_are_named(tmp_path: Path) -> None:
    rows = [{"message_id": str(n), "text": f"Text {n}.", "role": "prompter"} for n in range(ROWS)]

    with pytest.raises(Unfit, match="Each row is one turn of a conversation") as caught:
        read(tmp_path, rows)

    assert caught.value.instead == Columns(text="text")


def test_texts_with_a_class_ask_what_is_to_be_learned(tmp_path: Path) -> None:
    rows = [{"text": f"Text {n}.", "label": n % 2} for n in range(ROWS)]

    with pytest.raises(Unfit, match="texts with label beside them") as caught:
        read(tmp_path, rows)

    found = read(tmp_path, rows, columns=caught.value.instead)
    assert said(found.documents[3]) == [("user", "Text 3."), ("assistant", "1")]


@pytest.mark.parametrize(
    "extra",
    [
        {"images": ["a.png"]},
        {"Image": "a.jpg"},
        {"audio_path": "a.wav"},
        {"figure": {"bytes": "x", "path": "a.png"}},
    ],
)
@pytest.mark.parametrize(
    "row", [{"messages": turns(0)}, {"prompt": "?", "completion": "!"}, {"text": "Text."}]
)
def test_rows_with_pictures_or_sounds_are_bad_rows(row: Row, extra: Row, tmp_path: Path) -> None:
    found = read(tmp_path, [row | extra] * ROWS)

    assert (len(found.documents), len(found.problems)) == (0, ROWS)
    assert "only text is supported" in found.problems[0].what


@pytest.mark.parametrize("question", ["<image>\nWhat is this?", "What is this?\n<image>"])
def test_a_question_about_a_picture_is_a_bad_row(question: str, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": question}, turns(0)[1]]}

    found = read(tmp_path, [row] * ROWS)

    assert found.problems[0].what == (
        "a question refers to a file with <image>, and only text is supported"
    )


# -- placeholders ----------------------------------------------------------------------------------

IDENTITY = Path(__file__).parents[2] / "data" / "identity_alpaca.json"


def test_placeholders_are_found_and_filled() -> None:
    plain = dataset.read(str(IDENTITY), eval_share=0.0, seed=0)
    noticed = Noticed()
    list(plain.parts[0].documents(lambda problem: None, noticed))
    values = (("name", "Sam"), ("author", "the Fern team"))
    learning = dataset.Learning(placeholders=values)

    filled = dataset.read(str(IDENTITY), eval_share=0.0, seed=0, learning=learning)

    assert noticed.placeholders == {"name": 77, "author": 60}
    assert "{{" not in str([document.turns for document in filled.train])
    assert filled.train[0].turns[1]["content"] == (
        "Hello! I am Sam, an AI assistant developed by the Fern team. How can I assist you today?"
    )


# -- what a tester brought -------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["is_safe", "is_correct", "accepted", "label"])
@pytest.mark.parametrize("bad", [False, 0, "bad"])
def test_ratings_have_many_names(column: str, bad: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "?", "response": f"Answer {n}.", column: bad} for n in range(ROWS)]

    with pytest.raises(Unfit, match="rate their answers") as caught:
        read(tmp_path, rows)

    found = read(tmp_path, rows, columns=caught.value.instead)
    assert all("unlearned" in document.turns[-1] for document in found.documents)


def test_what_is_true_for_bad_answers_is_read_so(tmp_path: Path) -> None:
    rows = [{"prompt": "?", "response": f"Answer {n}.", "toxic": bool(n % 2)} for n in range(ROWS)]

    found = read(tmp_path, rows, columns=Columns(prompt="prompt", answer="response"))

    learned = ["unlearned" not in document.turns[-1] for document in found.documents]
    assert learned == [not n % 2 for n in range(ROWS)]


def test_a_class_is_no_rating_of_the_answer(tmp_path: Path) -> None:
    rows = [
        {"text": f"Text {n}.", "label": bool(n % 2), "label_text": ["negative", "positive"][n % 2]}
        for n in range(ROWS)
    ]

    with pytest.raises(Unfit) as caught:
        read(tmp_path, rows)

    assert caught.value.instead == Columns(prompt="text", answer="label_text")
    found = read(tmp_path, rows, columns=caught.value.instead)
    assert not any("unlearned" in document.turns[-1] for document in found.documents)


@pytest.mark.parametrize("column", ["answer", "summary", "code", "sentiment", "stars", "entities"])
def test_a_text_with_something_to_learn_beside_it_is_not_learned_alone(
    column: str, tmp_path: Path
) -> None:
    rows: list[Row] = [{"text": f"Text {n}."} for n in range(ROWS)]
    rows[4] = {**rows[4], column: [1, 2] if column == "entities" else "positive"}

    with pytest.raises(Unfit, match=f"texts with {column} beside them"):
        read(tmp_path, rows)


def test_a_context_beside_a_conversation_is_a_part_of_the_system_prompt(tmp_path: Path) -> None:
    rows = [{"context": "Be kind.", "messages": turns(n)} for n in range(ROWS)]

    found = read(tmp_path, rows)

    assert found.uses["context"] == "added to the system prompt"
    assert said(found.documents[7]) == [("system", "Be kind."), *asked(7)]


def test_choices_are_shown_and_the_number_of_one_is_its_text(tmp_path: Path) -> None:
    rows = [
        {"question": "Which?", "choices": ["red", "blue"], "answer": n % 2} for n in range(ROWS)
    ]

    found = read(tmp_path, rows)

    assert said(found.documents[1]) == [
        ("user", "Which?\n\nA. red\nB. blue"), ("assistant", "B. blue")
    ]  # fmt: skip


def test_two_system_prompts_in_a_row_are_a_bad_row(tmp_path: Path) -> None:
    row = {"system": "A", "system_prompt": "B", "prompt": "?", "response": "!"}

    found = read(tmp_path, [row] * ROWS)

    assert found.problems[0].what == "it has system prompts in system and in system_prompt"


def test_answers_that_are_calls_of_tools_are_read_as_calls(tmp_path: Path) -> None:
    row = {
        "query": "The weather?", "tools": '[{"name": "weather", "parameters": {}}]',
        "answers": '[{"name": "weather", "arguments": {"city": "Oslo"}}]',
    }  # fmt: skip

    (document, *_) = read(tmp_path, [row] * ROWS).documents

    assert document.turns[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}


def test_texts_in_turns_are_a_conversation(tmp_path: Path) -> None:
    rows = [{"conversations": [f"Question {n}?", f"Answer {n}."]} for n in range(ROWS)]

    assert said(read(tmp_path, rows).documents[3]) == asked(3)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I am {{name}}.", {"name"}),
        ("我是{{名字}}", {"名字"}),
        ("{{first name}}{{last}}", {"first name", "last"}),
        (r"\frac{{ab}}{{b}}", set()),
        ("x^{{10}} and {{a}}", set()),
    ],
)
def test_placeholders_are_told_from_mathematics(text: str, found: set[str]) -> None:
    names: set[str] = set()
    placeholders.found_in(text, into=names)

    assert names == found


def test_a_corrected_answer_is_not_passed_over(tmp_path: Path) -> None:
    rows = [
        {"prompt": "?", "response": "Wrong.", "corrected_response": f"Answer {n}."}
        for n in range(ROWS)
    ]

    with pytest.raises(Unfit, match="a corrected one, in corrected_response") as caught:
        read(tmp_path, rows)

    found = read(tmp_path, rows, columns=caught.value.instead)
    assert said(found.documents[3])[1] == ("assistant", "Answer 3.")
