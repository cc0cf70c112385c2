"""What a run takes: counted from its start, with what an earlier one left to it, and kept near."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from backend.engine.core import memory
from backend.engine.data.token_arrays import Tokens
from backend.engine.runs.run_memory import RunMemory
from backend.engine.steps.packing import Packs
from backend.requests import Train

MB = 1_000_000


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    state = SimpleNamespace(resident=500 * MB, peak=0, joined=0)

    def join(device: torch.device) -> bool:
        state.joined += 1
        return True

    monkeypatch.setattr(memory, "resident", lambda device: state.resident)
    monkeypatch.setattr(memory, "peak", lambda device: state.peak)
    monkeypatch.setattr(memory, "available", lambda device: 1000 * MB)
    monkeypatch.setattr(memory, "reset_peak", lambda device: None)
    monkeypatch.setattr(memory, "release", lambda device: None)
    monkeypatch.setattr(memory, "join_freed", join)
    return state


@pytest.fixture
def session() -> Any:
    base = SimpleNamespace(device=torch.device("cpu"))
    return SimpleNamespace(base=base, held_by_earlier_runs={})


def test_peak_counts_from_the_start(machine: SimpleNamespace, session: Any) -> None:
    taken = RunMemory(session)
    machine.peak = 650 * MB
    assert taken.peak == 150 * MB


def test_a_second_run_counts_what_the_first_left_to_it(
    machine: SimpleNamespace, session: Any
) -> None:
    first = RunMemory(session)
    machine.peak, machine.resident = 650 * MB, 600 * MB
    first.close()
    second = RunMemory(session)  # takes the same, of which 100 MB are there
    assert (first.peak, second.peak) == (150 * MB, 150 * MB)


def test_what_bf16_left_counts_for_later_runs_in_bf16_alone(
    machine: SimpleNamespace, session: Any
) -> None:
    first = RunMemory(session)
    first.expect("bf16")
    machine.peak = machine.resident = 1000 * MB
    first.close()
    machine.peak = 1100 * MB
    plain = RunMemory(session)
    again = RunMemory(session)
    again.expect("bf16")

    assert (plain.peak, again.peak) == (100 * MB, 600 * MB)


def test_a_chat_between_two_runs_is_not_the_second_ones(
    machine: SimpleNamespace, session: Any
) -> None:
    RunMemory(session).close()
    machine.resident, machine.peak = 550 * MB, 560 * MB
    assert RunMemory(session).peak == 10 * MB


@pytest.mark.parametrize(("precision", "joined"), [("fp32", [1, 1, 2, 2]), ("bf16", [0, 0, 1, 1])])
def test_freed_blocks_are_joined_before_a_step_that_cannot_use_them(
    machine: SimpleNamespace, session: Any, precision: str, joined: list[int]
) -> None:
    lengths = [60, 61, 61, 100]  # in bf16 the first three are filled up to 64 tokens
    documents = [Tokens(np.zeros(n, np.int32), np.ones(n, bool)) for n in lengths]
    packs = Packs(documents, [[0], [1], [2], [3]])
    taken = RunMemory(session)
    taken.expect(precision)
    tidy = taken.between_steps(packs, Train(name="a", data="starter"), 0)

    seen = []
    for _ in lengths:
        tidy()
        seen.append(machine.joined)
    assert seen == joined


def test_nothing_is_joined_where_there_is_no_such_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "REUSES_BLOCKS", False)
    assert not memory.join_freed(torch.device("cpu"))
    assert not memory.join_freed(torch.device("cuda"))
