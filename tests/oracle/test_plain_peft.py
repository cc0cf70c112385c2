"""The oracle is another process, which knows nothing of ours and survives a wrong question."""

import os
from pathlib import Path

import pytest
import torch

from tests.oracle import oracle
from tests.oracle.adapters_from_outside import TAKEN, write_adapter, write_base
from tests.oracle.texts import distance


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("oracle"), tied=False)


def test_it_is_another_process_without_the_workbench(base: Path) -> None:
    oracle.scores(base, [])
    found = oracle.process().ask("modules")
    assert oracle.process().pid != os.getpid()
    assert "peft" in found
    assert [name for name in found if name.split(".")[0] in ("backend", "ui", "benchmarks")] == []


def test_what_is_left_behind_here_does_not_reach_it(base: Path) -> None:
    before = oracle.scores(base, [])
    torch.set_autocast_enabled("cpu", True)
    try:
        assert oracle.scores(base, []) == before
    finally:
        torch.set_autocast_enabled("cpu", False)


def test_a_question_that_fails_is_told_and_the_next_is_answered(base: Path) -> None:
    with pytest.raises(RuntimeError, match="Can't find 'adapter_config"):
        oracle.scores(base, [(base, 1.0)])
    assert oracle.scores(base, []) == oracle.scores(base, [])


def test_its_ways_agree_where_they_must(base: Path, tmp_path: Path) -> None:
    """A cat blend is the sum; the closest change of full rank is the change, whatever the kind."""
    one = write_adapter(tmp_path / "one", base, TAKEN["lora"], seed=1)
    two = write_adapter(tmp_path / "two", base, TAKEN["attention"], seed=2)
    parts = [(one, 0.5), (two, -0.7)]
    assert oracle.blends_right(base, [one, two], None)
    assert distance(oracle.blended(base, parts, "cat", seed=0), oracle.scores(base, parts)) < 1e-5
    for kind in ("lora", "dora", "pissa"):
        folder = write_adapter(tmp_path / kind, base, TAKEN[kind], seed=3)
        whole = oracle.scores(base, [(folder, 1.0)])
        assert distance(oracle.compressed(base, folder, 48), whole) < 1e-5
        assert distance(oracle.compressed(base, folder, 1), whole) > 1e-3
        assert distance(whole, oracle.scores(base, [])) > 1e-3
