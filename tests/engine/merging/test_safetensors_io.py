"""Tensors that are read ahead and written behind: in order, whole, and with their errors."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend.engine.merging.safetensors_io import Behind, read_ahead
from backend.errors import ModelError
from backend.files.safetensors_header import read_header


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "three.safetensors"
    save_file({name: torch.full((4,), n) for n, name in enumerate("abc")}, path)
    return path


def test_tensors_come_in_the_order_that_was_asked_for(file: Path) -> None:
    stored = sorted(read_header(file), reverse=True)
    assert [tensor[0].item() for tensor in read_ahead(stored)] == [2, 1, 0]
    assert list(read_ahead([])) == []


def test_a_tensor_that_cannot_be_read_is_named_when_its_turn_comes(file: Path) -> None:
    first, second, *_ = sorted(read_header(file))
    tensors = read_ahead([first, second._replace(file=file.with_name("gone"))])
    assert next(tensors)[0].item() == 0
    with pytest.raises(ModelError, match="gone could not be read"):
        next(tensors)


def test_the_next_piece_waits_for_the_last_one() -> None:
    free, done = threading.Event(), []

    def work(tensor: torch.Tensor) -> None:
        if tensor.item() == 0:
            free.wait(10)
        done.append(tensor.item())

    with Behind() as behind:
        behind(work, torch.tensor(0))
        assert done == []
        free.set()
        behind(work, torch.tensor(1))
        assert done[0] == 0
    assert done == [0, 1]


def write_on_a_full_disk(pieces: int) -> int:
    """Returns how many were taken before the failure was told; -1 where it never was."""

    def full(tensor: torch.Tensor) -> None:
        raise OSError("No space left")

    taken = 0
    try:
        with Behind() as behind:
            for number in range(pieces):
                behind(full, torch.tensor(number))
                taken += 1
    except OSError:
        return taken
    return -1


@pytest.mark.parametrize("pieces", [1, 3])
def test_what_fails_behind_is_raised_by_the_next_piece_or_at_the_end(pieces: int) -> None:
    assert write_on_a_full_disk(pieces) == 1
