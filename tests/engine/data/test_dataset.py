"""What is learned of a data set and what is held out of it: never the same example."""

from pathlib import Path

import pytest

from backend.errors import DataError
from backend.requests import Columns
from tests.engine.written_files import Row, read, write


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


def test_data_of_its_own_is_held_out_instead_of_a_share(tmp_path: Path) -> None:
    learned = write(tmp_path / "learned.jsonl", numbered(20))
    tested = write(tmp_path / "tested.csv", [{"text": "another"}, {"text": "and one more"}])

    found = read(learned, eval_share=0.5, held_out=str(tested))

    assert len(found.train) == 20
    assert [document.text for document in found.held_out] == ["another", "and one more"]


def test_what_is_held_out_of_its_own_file_is_not_learned(tmp_path: Path) -> None:
    learned = write(tmp_path / "learned.jsonl", numbered(5) + numbered(2))
    tested = write(tmp_path / "tested.jsonl", [{"text": "example 1"}, {"text": "unlike"}])

    found = read(learned, held_out=str(tested))

    assert [document.text for document in found.train] == [
        *("example 0", "example 2", "example 3", "example 4", "example 0")
    ]
    assert len(found.held_out) == 2


def test_a_held_out_file_may_name_its_columns_otherwise(tmp_path: Path) -> None:
    learned = write(tmp_path / "learned.csv", [{"q": "a", "a": "b"}])
    tested = write(tmp_path / "tested.csv", [{"prompt": "a", "completion": "b"}])
    alike = write(tmp_path / "alike.csv", [{"a": "b", "q": "a"}])
    columns = Columns(prompt="q", answer="a")

    for held_out in (tested, alike):
        found = read(learned, held_out=str(held_out), columns=columns)

        assert (len(found.train), len(found.held_out)) == (0, 1)


def test_an_empty_held_out_file_is_said(tmp_path: Path) -> None:
    learned = write(tmp_path / "learned.jsonl", numbered(5))
    (tmp_path / "tested.jsonl").write_bytes(b"")

    with pytest.raises(DataError) as caught:
        read(learned, held_out=str(tmp_path / "tested.jsonl"))

    assert str(caught.value) == "tested.jsonl is empty. It needs at least one example."


def test_bad_rows_of_the_two_files_are_told_apart(tmp_path: Path) -> None:
    learned = write(tmp_path / "learned.jsonl", [{"text": "a"}, {"text": 1}])
    tested = write(tmp_path / "tested.jsonl", [{"text": "b"}, {"text": 2}])

    found = read(learned, held_out=str(tested))

    assert [problem.place for problem in found.problems] == ["row 2", "tested.jsonl, row 2"]
