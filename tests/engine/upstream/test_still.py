"""The pointers to guards, of tests that cannot run on this machine too."""

import ast
from pathlib import Path

import pytest

from tests.engine.upstream.still import assert_still, exists

TESTS = Path(__file__).parents[1]


def pointers() -> dict[str, str]:
    """Return every guard that a test names, with the file that does."""
    found = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        if file == Path(__file__):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "assert_still":
                guard = node.args[2]
                assert isinstance(guard, ast.Constant), f"{file}: a guard is plain text"
                found[str(guard.value)] = file.name
    return found


def test_every_guard_that_a_test_names_exists() -> None:
    found = pointers()
    assert len(found) > 25
    assert {guard: file for guard, file in found.items() if not exists(guard)} == {}


@pytest.mark.parametrize(
    "stale",
    [
        "file_validation.py (_REFUSED)",
        "file_validation.py (_plain_targets)",
        "nowhere.py (scan)",
        "file_validation.py",
        "Slot.swap",
    ],
)
def test_a_pointer_to_nothing_is_noticed(stale: str) -> None:
    assert not exists(stale)
    with pytest.raises(AssertionError, match="point to where"):
        assert_still(True, "something", stale)


def test_what_is_mended_is_noticed() -> None:
    with pytest.raises(
        AssertionError, match=r"PEFT .* mended something: the guard in file_validation.py"
    ):
        assert_still(False, "something", "file_validation.py (scan)")
