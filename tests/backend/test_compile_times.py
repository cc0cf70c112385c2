"""What compiling costs on this machine: guessed at first, then known."""

from pathlib import Path

import pytest

from backend.compile_times import CompileTimes


def test_a_guess_grows_with_the_layers(tmp_path: Path) -> None:
    times = CompileTimes(tmp_path / "times.json")
    assert times.expected(1) < times.expected(4) < times.expected(32)


def test_what_it_took_is_expected_of_other_bases_too(tmp_path: Path) -> None:
    times = CompileTimes(tmp_path / "times.json")
    before = times.expected(8)
    times.note(4, 3 * times.expected(4))
    again = CompileTimes(tmp_path / "times.json")
    assert again.expected(8) == pytest.approx(3 * before)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"factor": "x"}', '{"factor": -1}', "\0"])
def test_a_damaged_file_is_no_knowledge(tmp_path: Path, content: str) -> None:
    file = tmp_path / "times.json"
    fresh = CompileTimes(file).expected(4)
    file.write_text(content)
    assert CompileTimes(file).expected(4) == fresh
